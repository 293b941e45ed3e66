"""Texts on their way to the model: read in turns, within the limits, and for nobody who has left."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message
from toy_llm import ToyLLM

from qwenstack.core.limits import Limits
from qwenstack.serving import ServeConfig, create_app

pytestmark = pytest.mark.anyio
NUM_PLACES = max(1, (os.cpu_count() or 1) - 1)
"""Of one tenant; one thread is left for another."""
TURN = {"role": "user", "content": "hello"}
CHAT = {"messages": [TURN], "model": "default", "max_tokens": 5}
READERS: dict[str, dict[str, object]] = {
    "/tokenize": {"prompt": "hello"},
    "/apply-template": {"messages": [TURN]},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello", "store": False},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": {"messages": [TURN], "model": "default"},
    "/api/chat": {"model": "default", "messages": [TURN]},
    "/api/generate": {"model": "default", "prompt": "hello"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/v1/fim/completions": {"model": "default", "prompt": "a", "suffix": "b"},
    "/qwen3/generate": {"prompt": "hello"},
}


class Connection:
    """One request over ASGI whose client can leave."""

    def __init__(self, app: ASGIApp, path: str, body: dict[str, object]) -> None:
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.sent: list[Message] = []
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8000),
        }
        self.task = asyncio.ensure_future(self._run(app, scope))

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        await app(scope, self._incoming.get, self._send)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


async def until_read(llm: ToyLLM, count: int) -> None:
    async with asyncio.timeout(10):
        while llm.num_read < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("path", READERS)
async def test_sec_09_texts_of_clients_who_left_are_not_read(path: str) -> None:
    llm = ToyLLM(may_read=asyncio.Event())
    assert llm.may_read is not None
    app = create_app(llm, ServeConfig())
    busy = [Connection(app, path, READERS[path]) for _ in range(NUM_PLACES)]
    await until_read(llm, NUM_PLACES)
    waiting = [Connection(app, path, READERS[path]) for _ in range(5)]
    await asyncio.sleep(0.02)
    for connection in (*waiting, busy[0]):
        connection.leave()
    async with asyncio.timeout(5):  # at once, also where a thread has the text in hands
        await asyncio.gather(*(connection.task for connection in (*waiting, busy[0])))
    llm.may_read.set()
    await asyncio.gather(*(connection.task for connection in busy))
    assert llm.num_read == NUM_PLACES
    assert all(connection.sent[0]["status"] == 200 for connection in busy[1:])


async def test_sec_09_no_more_texts_of_a_tenant_are_read_at_a_time_than_there_are_threads_but_one() -> None:
    llm = ToyLLM(may_read=asyncio.Event())
    assert llm.may_read is not None
    app = create_app(llm, ServeConfig())
    connections = [Connection(app, "/tokenize", {"prompt": "hello"}) for _ in range(4 * NUM_PLACES)]
    await until_read(llm, NUM_PLACES)
    await asyncio.sleep(0.05)
    assert llm.num_read == NUM_PLACES
    llm.may_read.set()
    await asyncio.gather(*(connection.task for connection in connections))
    assert all(connection.sent[0]["status"] == 200 for connection in connections)


@pytest.mark.parametrize("path", READERS)
async def test_sec_09_a_text_that_is_read_counts_among_the_answers_at_a_time(path: str) -> None:
    llm = ToyLLM(may_read=asyncio.Event())
    assert llm.may_read is not None
    app = create_app(llm, ServeConfig(limits=Limits(concurrent_requests=1)))
    reading = Connection(app, path, READERS[path])
    await until_read(llm, 1)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        refused = await client.post(path, json=READERS[path])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert llm.num_read == 1
        llm.may_read.set()
        await reading.task
        assert (await client.post(path, json=READERS[path])).status_code == 200


@pytest.mark.parametrize("limits", [{"tokens_per_minute": 60}, {"tokens_per_day": 60}])
async def test_sec_09_who_has_no_tokens_left_has_nothing_read(limits: dict[str, int]) -> None:
    llm = ToyLLM(endless=True)
    app = create_app(llm, ServeConfig(limits=Limits(**limits)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        body = {"prompt": "hello", "max_tokens": 55}
        answers = [await client.post("/v1/completions", json=body) for _ in range(3)]
        counted = await client.post("/tokenize", json={"prompt": "hello"})
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert llm.num_read == 2, "the first prompt, and what is only counted"
    assert counted.status_code == 200
