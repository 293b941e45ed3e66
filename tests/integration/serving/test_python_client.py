"""Our own client over a real server: both kinds say the same, and the same as OpenAI's."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest
from toy_llm import FULL, ToyLLM

from qwenstack.client import (
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    ChatCompletion,
    Client,
    ConnectionFailedError,
    NotFoundError,
    OverloadedError,
    RetryPolicy,
    ServerError,
    StatusError,
    TimedOutError,
)

HELLO = [{"role": "user", "content": "你好, hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'
AT_ONCE = RetryPolicy(max_retries=0)

Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, url: str) -> Ask:
    """Let a client of either kind do something: `ask(lambda client: client.models.list())`."""

    def run(act: Callable[[Any], Any], **options: Any) -> Any:
        options = {"base_url": url, "retries": AT_ONCE} | options
        if request.param == "sync":
            with Client(**options) as client:
                return act(client)

        async def whole() -> Any:
            async with AsyncClient(**options) as client:
                result = act(client)
                return await result if inspect.isawaitable(result) else result

        return asyncio.run(whole())

    return run


def streamed(stream: Any) -> Any:
    """Read a stream of either kind to its end: texts and whole."""
    if not hasattr(stream, "__aenter__"):
        with stream as opened:
            return list(opened.texts()), opened.final()

    async def whole() -> Any:
        async with stream as opened:
            return [text async for text in opened.texts()], await opened.final()

    return whole()


def without_id(answer: ChatCompletion) -> dict[str, Any]:
    fields = msgspec.to_builtins(answer)
    for call in (call for choice in fields["choices"] for call in choice["message"].get("tool_calls") or ()):
        assert call.pop("id").startswith("call_")
    return {name: value for name, value in fields.items() if name not in {"id", "created"}}


def test_a_whole_answer_is_what_openais_client_reads(ask: Ask, url: str) -> None:
    options: dict[str, Any] = {"temperature": 0.5, "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 2}
    ours = ask(lambda client: client.chat.create(HELLO, **options))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        theirs = client.chat.completions.create(model="default", messages=HELLO, **options)  # type: ignore[arg-type]
    assert [choice.message.content for choice in ours.choices] == [choice.message.content for choice in theirs.choices]
    assert ours.text == theirs.choices[0].message.content
    assert theirs.usage is not None
    assert ours.usage.total_tokens == theirs.usage.total_tokens
    assert theirs.choices[0].logprobs is not None
    assert len(ours.choices[0].logprobs.content) == len(theirs.choices[0].logprobs.content or ())


@pytest.mark.parametrize(
    ("says", "options"),
    [
        (None, {}),
        (None, {"n": 3, "seed": 5, "temperature": 1.0}),
        (None, {"logprobs": True, "top_logprobs": 1, "max_tokens": 4}),
        (None, {"stop": "h"}),
        (f"I look.{CALL}{CALL}", {"tools": [WEATHER]}),
        (CALL, {"tools": [WEATHER]}),
        ("<think>\nhm, 嗯\n</think>\n\nyes", {}),
        ("", {}),
    ],
)
def test_what_a_stream_adds_up_to_is_the_whole_answer(
    ask: Ask, llm: ToyLLM, says: str | None, options: dict[str, Any]
) -> None:
    llm.says = says
    whole = ask(lambda client: client.chat.create(HELLO, **options))
    texts, final = ask(lambda client: streamed(client.chat.stream(HELLO, **options)))
    assert without_id(final) == without_id(whole)
    assert "".join(texts) == whole.text
    assert all(texts)


def test_an_answer_goes_back_into_the_conversation_as_it_is(ask: Ask, llm: ToyLLM) -> None:
    llm.says = f"<think>\nhm\n</think>\n\n{CALL}"
    first = ask(lambda client: client.chat.create(HELLO, tools=[WEATHER]))
    (call,) = first.message.tool_calls
    assert call.function.read_arguments() == {"city": "北京"}
    llm.says = None
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    again = ask(lambda client: client.chat.create([*HELLO, first.message, result], tools=[WEATHER]))
    assert again.text == "echo: [tool] sunny"


def test_texts_go_on_whole_and_in_a_stream(ask: Ask) -> None:
    whole = ask(lambda client: client.completions.create(["ab", "cd"], max_tokens=8))
    assert [choice.text for choice in whole.choices] == ["echo: ab", "echo: cd"]
    texts, final = ask(lambda client: streamed(client.completions.stream(["ab", "cd"], max_tokens=8)))
    assert [choice.text for choice in final.choices] == ["echo: ab", "echo: cd"]
    assert ("".join(texts), final.usage) == ("echo: ab", whole.usage)


def test_models_and_tokens(ask: Ask) -> None:
    (model,) = ask(lambda client: client.models.list()).data
    assert model.id == "toy/echo"
    assert ask(lambda client: client.models.retrieve("toy/echo")) == model
    tokens = ask(lambda client: client.tokens.tokenize("你好"))
    assert tokens.tokens == list("你好".encode())
    assert ask(lambda client: client.tokens.detokenize(tokens.tokens)).content == "你好"
    assert ask(lambda client: client.tokens.tokenize(messages=HELLO)).count > 0
    assert "[user]" in ask(lambda client: client.tokens.apply_template(HELLO)).prompt


def failure_of(ask: Ask, act: Callable[[Any], Any], **options: Any) -> StatusError:
    with pytest.raises(StatusError) as raised:
        ask(act, **options)
    return raised.value


def test_errors_have_a_type_and_what_the_server_said(ask: Ask, llm: ToyLLM) -> None:
    wrong = failure_of(ask, lambda client: client.chat.create(HELLO, temperature=9))
    assert (type(wrong), wrong.status, wrong.param) == (BadRequestError, 400, "temperature")
    assert len(wrong.request_id or "") == 32
    unknown = failure_of(ask, lambda client: client.models.retrieve("../../x?y#z"))
    assert (type(unknown), unknown.code) == (NotFoundError, "model_not_found")
    assert "../../x?y#z" in str(unknown)
    llm.error = FULL
    full = failure_of(ask, lambda client: client.chat.create(HELLO))
    assert (type(full), full.status, full.retry_after_s) == (OverloadedError, 503, 1)
    llm.error, llm.fail_after = None, 2
    broken = failure_of(ask, lambda client: streamed(client.chat.stream(HELLO)))
    assert (type(broken), broken.code) == (ServerError, "engine_error")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_key_opens_the_server_and_is_not_in_what_is_printed(kind: str, serve: Any) -> None:
    with serve(api_keys=("sk-the-right-key",)) as url:
        with Client(url, retries=AT_ONCE) as client, pytest.raises(AuthenticationError):
            client.models.list()
        with Client(url, api_key="sk-the-right-key") as client:
            assert client.models.list().data
            assert "sk-the" not in repr(client) + repr(vars(client))


def test_leaving_a_stream_early_cancels_the_answer(ask: Ask, llm: ToyLLM) -> None:
    llm.endless, llm.step_s = True, 0.005

    def leave(client: Any) -> Any:
        stream = client.chat.stream(HELLO)
        if not hasattr(stream, "__aenter__"):
            with stream as opened:
                return next(iter(opened.texts()))

        async def whole() -> str:
            async with stream as opened:
                async for text in opened.texts():
                    return text
            raise AssertionError

        return whole()

    assert ask(leave)
    for _ in range(500):
        if llm.num_open == 0:
            return
        time.sleep(0.02)
    raise AssertionError("the answer goes on")


def test_what_is_full_for_a_moment_is_asked_again(ask: Ask, llm: ToyLLM) -> None:
    llm.error = FULL
    threading.Timer(0.5, lambda: setattr(llm, "error", None)).start()
    answer = ask(lambda client: client.chat.create(HELLO), retries=RetryPolicy(max_retries=5))
    assert answer.text.startswith("echo")
    assert len(llm.prompts) > 1


@contextlib.contextmanager
def silent_server(answer: bytes, *, is_reset: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """Take connections, send something, and hang up; with a reset if asked."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        is_over = threading.Event()

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if is_over.is_set():
                        return
                    requests.append(connection.recv(65_536))
                    connection.sendall(answer)
                    if is_reset:  # lingering for no time: what is not read yet is of no more interest
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    if not answer:
                        is_over.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        address = listener.getsockname()
        try:
            yield f"http://127.0.0.1:{address[1]}", requests
        finally:
            is_over.set()
            socket.create_connection(address).close()
            thread.join(20)


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_stream_that_breaks_off_is_an_error_and_not_a_short_answer(is_reset: bool) -> None:
    chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": "half"}}]}
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    answer = head + b"data: " + json.dumps(chunk).encode() + b"\n\n"
    with silent_server(answer, is_reset=is_reset) as (url, requests):
        with Client(url) as client, client.chat.stream(HELLO) as stream:
            texts = stream.texts()
            assert next(texts) == "half"
            with pytest.raises(ConnectionFailedError, match="broke off"):
                next(texts)
        assert len(requests) == 1  # what has begun is not begun again


def test_a_server_that_is_silent_or_away_is_told_in_a_sentence() -> None:
    with (
        silent_server(b"") as (url, _),
        Client(url, timeout_s=0.3, retries=AT_ONCE) as client,
        pytest.raises(TimedOutError, match="timeout_s"),
    ):
        client.models.list()
    with Client(url, retries=AT_ONCE) as client, pytest.raises(ConnectionFailedError, match="Is the server running"):
        client.models.list()


def test_a_redirect_is_not_followed_with_the_key() -> None:
    seen: list[httpx.Request] = []

    def redirect(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(307, headers={"location": "http://evil.example/v1/models"})

    with (
        Client(api_key="sk-secret-key", transport=httpx.MockTransport(redirect), retries=AT_ONCE) as client,
        pytest.raises(StatusError, match="307"),
    ):
        client.models.list()
    assert [request.url.host for request in seen] == ["127.0.0.1"]
