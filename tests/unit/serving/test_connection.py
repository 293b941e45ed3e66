"""What becomes of the work when the client leaves, waits, or the server stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.connection import Lifetime, run_while_connected, run_while_serving
from qwenstack.serving.errors import ServerStoppingError
from qwenstack.serving.merge import merge_streams
from qwenstack.serving.wire.sse import encode_event

pytestmark = pytest.mark.anyio


class RawClient:
    """A client that speaks ASGI itself, to leave when it likes and to read as slowly as it likes."""

    def __init__(self, llm: ToyLLM, path: str, body: dict, config: ServeConfig | None = None) -> None:
        self.app = create_app(llm, config or ServeConfig())
        self.events: asyncio.Queue[dict] = asyncio.Queue()
        self.events.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.sent: list[dict] = []
        self.got_event = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }

    async def send(self, message: dict) -> None:
        await self.may_send.wait()
        self.sent.append(message)
        self.got_event.set()

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.app(self.scope, self.events.get, self.send))

    def leave(self) -> None:
        self.events.put_nowait({"type": "http.disconnect"})

    @property
    def data(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


REQUESTS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": False}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
    ("/v1/completions", {"prompt": ["x", "y", "z"], "stream": False, "max_tokens": 500}),
    ("/v1/completions", {"prompt": ["x", "y", "z"], "stream": True, "max_tokens": 500}),
    ("/qwen3/generate", {"prompt": "x"}),
]


async def wait_for_steps(llm: ToyLLM, count: int) -> None:
    async with asyncio.timeout(5):
        while llm.num_steps < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_the_work_of_a_client_that_left_ends_within_a_step(path: str, body: dict) -> None:
    llm = ToyLLM(endless=True, step_s=0.005)
    client = RawClient(llm, path, body)
    answer = client.start()
    await wait_for_steps(llm, 5)
    assert llm.num_open == len(body.get("prompt", "x"))
    client.leave()
    await asyncio.sleep(0.005)
    steps = llm.num_steps
    async with asyncio.timeout(1):
        await answer
    assert llm.num_open == 0
    await asyncio.sleep(0.02)
    assert llm.num_steps <= steps + 1


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_client_that_leaves_before_the_first_token_is_noticed_too(path: str, body: dict) -> None:
    llm = ToyLLM(first_step_s=60)
    client = RawClient(llm, path, body)
    answer = client.start()
    async with asyncio.timeout(5):
        while not llm.num_open:
            await asyncio.sleep(0.001)
    client.leave()
    async with asyncio.timeout(1):
        await answer
    assert llm.num_open == 0


async def test_a_slow_reader_holds_back_its_own_answer() -> None:
    llm = ToyLLM(endless=True)
    client = RawClient(llm, *REQUESTS[1])
    answer = client.start()
    await client.got_event.wait()
    client.may_send.clear()
    await asyncio.sleep(0.01)
    steps = llm.num_steps
    await asyncio.sleep(0.05)
    assert llm.num_steps == steps
    client.leave()
    async with asyncio.timeout(1):
        await answer
    assert llm.num_open == 0


async def test_a_long_wait_is_filled_with_comments() -> None:
    llm = ToyLLM(first_step_s=0.3)
    client = RawClient(llm, *REQUESTS[1], config=ServeConfig(ping_interval_s=0.05))
    await client.start()
    assert client.sent[0]["status"] == 200
    assert client.data.startswith(b": ping\n\n: ping\n\n")
    assert client.data.endswith(b"data: [DONE]\n\n")


async def test_an_answer_that_flows_needs_no_comments() -> None:
    client = RawClient(ToyLLM(step_s=0.01), *REQUESTS[1], config=ServeConfig(ping_interval_s=0.1))
    await client.start()
    assert b": ping" not in client.data


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_server_that_stops_ends_its_answers_and_says_so(path: str, body: dict) -> None:
    llm = ToyLLM(endless=True, step_s=0.002)
    client = RawClient(llm, path, body)
    answer = client.start()
    await wait_for_steps(llm, 5)
    client.app.state.lifetime.stop()
    async with asyncio.timeout(1):
        await answer
    assert llm.num_open == 0
    assert b"shutting down" in client.data
    assert client.sent[0]["status"] == (200 if body.get("stream") else 503)
    assert client.sent[-1].get("more_body", False) is False


async def test_a_cancelled_answer_is_cancelled_in_the_engine_too() -> None:
    llm = ToyLLM(endless=True, step_s=0.002)
    answer = RawClient(llm, *REQUESTS[1]).start()
    await wait_for_steps(llm, 3)
    answer.cancel()
    await asyncio.wait((answer,))
    assert llm.num_open == 0


class Conversation:
    """What a client does, as the server hears of it."""

    def __init__(self) -> None:
        self._left = asyncio.Event()
        self.leave = self._left.set

    async def receive(self) -> dict:
        await self._left.wait()
        return {"type": "http.disconnect"}


async def forever(begun: asyncio.Event) -> None:
    begun.set()
    await asyncio.Event().wait()


async def test_whoever_was_told_that_the_client_left_goes_on_uncancelled() -> None:
    client, begun = Conversation(), asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, client.leave)
    with pytest.raises(ClientDisconnect):
        await run_while_connected(forever(begun), client.receive, Lifetime())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_work_that_is_done_before_the_client_leaves_is_done() -> None:
    client, lifetime = Conversation(), Lifetime()
    assert await run_while_connected(asyncio.sleep(0.001, "done"), client.receive, lifetime) == "done"
    client.leave()
    lifetime.stop()
    await asyncio.sleep(0.01)  # nothing is thrown here any more


async def test_who_is_cancelled_while_the_client_leaves_is_cancelled() -> None:
    client, begun = Conversation(), asyncio.Event()
    answer = asyncio.ensure_future(run_while_connected(forever(begun), client.receive, Lifetime()))
    await begun.wait()
    client.leave()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer


async def test_a_failure_while_the_server_stops_is_told_as_the_stop() -> None:
    lifetime, begun = Lifetime(), asyncio.Event()

    async def fail_when_cancelled() -> None:
        try:
            await forever(begun)
        finally:
            raise ZeroDivisionError

    answer = asyncio.ensure_future(run_while_connected(fail_when_cancelled(), Conversation().receive, lifetime))
    await begun.wait()
    lifetime.stop()
    with pytest.raises(ServerStoppingError):
        await answer


async def test_a_server_that_stops_begins_no_work() -> None:
    lifetime, begun = Lifetime(), asyncio.Event()
    lifetime.stop()
    with pytest.raises(ServerStoppingError):
        await run_while_connected(forever(begun), Conversation().receive, lifetime)
    with pytest.raises(ServerStoppingError):
        await run_while_serving(forever(begun), lifetime)
    assert not begun.is_set()


async def test_what_goes_wrong_with_the_body_ends_the_work() -> None:
    async def receive() -> dict:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_while_connected(forever(asyncio.Event()), receive, Lifetime())


async def numbers(start: int, count: int, *, fails: bool = False) -> AsyncGenerator[int]:
    for number in range(start, start + count):
        await asyncio.sleep(0)
        yield number
    if fails:
        raise ZeroDivisionError


async def test_merged_streams_keep_each_streams_order() -> None:
    merged = [number async for number in merge_streams([numbers(0, 5), numbers(100, 50), numbers(1000, 0)])]
    assert [number for number in merged if number < 100] == list(range(5))
    assert [number for number in merged if number >= 100] == list(range(100, 150))


async def test_an_error_in_one_stream_is_the_error_of_all() -> None:
    with pytest.raises(ZeroDivisionError):
        _ = [number async for number in merge_streams([numbers(0, 1000), numbers(0, 3, fails=True)])]


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner, max_size=3)))
@settings(deadline=None)
def test_any_payload_is_one_event(payload: object) -> None:
    try:
        json.dumps(payload, ensure_ascii=False).encode()
        data = encode_event(payload)
    except (UnicodeEncodeError, OverflowError):  # surrogates and giant numbers are never payload
        return
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 2
    assert b"\r" not in data
    assert json.loads(data.removeprefix(b"data: ")) == payload
