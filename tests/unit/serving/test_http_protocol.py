"""What one answer costs on its connection: a write for its head and what comes first, one for each later piece."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from qwenstack.serving.http_protocol import HttpLimits, bounded_protocol

LIMITS = HttpLimits(max_header_bytes=16_384, header_timeout_s=10, send_timeout_s=10)
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
STREAM: Message = {"type": "http.response.start", "status": 200, "headers": []}
BEGIN = b"HTTP/1.1 200 OK\r\n"


class Wire(asyncio.Transport):
    """Notes what is written, each time it is."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False
        self.cycle: Callable[[], object] = object

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def answered(*messages: Message, method: str = "GET", head: bytes = b"", is_sound: bool = True) -> Wire:
    """Return what is on the wire when an application has answered a request with these messages."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        if head:
            await receive()
        for message in messages:
            await send(message)
        if not is_sound:
            raise ConnectionAbortedError("An answer broke off after it had begun.")

    async def answer() -> Wire:
        config = uvicorn.Config(app, lifespan="off", access_log=False, server_header=False, date_header=False)
        config.load()
        make = cast("Callable[..., Any]", bounded_protocol(LIMITS))
        protocol, wire = make(config=config, server_state=ServerState(), app_state={}), Wire()
        protocol.connection_made(wire)
        protocol.data_received(f"{method} / HTTP/1.1\r\nhost: a\r\n".encode() + head + b"\r\n")
        wire.cycle = weakref.ref(protocol.cycle)
        await asyncio.gather(*protocol.tasks, return_exceptions=True)
        protocol.connection_lost(None)
        return wire

    return asyncio.run(answer())


def body(data: bytes, *, more_body: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more_body}


def test_a_short_answer_is_one_write() -> None:
    (whole,) = answered(START, body(b"done")).writes
    assert whole.startswith(BEGIN)
    assert whole.endswith(b"\r\n\r\ndone")


@pytest.mark.parametrize("messages", [(START, body(b"done")), (START,)])
def test_an_answer_leaves_nothing_to_the_garbage_collector(messages: tuple[Message, ...]) -> None:
    gc.disable()
    try:
        assert answered(*messages, is_sound=len(messages) > 1).cycle() is None
    finally:
        gc.enable()


def test_each_piece_of_a_stream_is_written_as_it_comes() -> None:
    first, *later = answered(STREAM, body(b"one", more_body=True), body(b"two", more_body=True), body(b"")).writes
    assert first.startswith(BEGIN)
    assert first.endswith(b"\r\n\r\n3\r\none\r\n")
    assert later == [b"3\r\ntwo\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize("messages", [(START, body(b"done")), (START, body(b""))])
def test_the_answer_to_head_is_its_head(messages: tuple[Message, ...]) -> None:
    (whole,) = answered(*messages, method="HEAD").writes
    assert whole.startswith(BEGIN)
    assert whole.endswith(b"\r\n\r\n")


def test_an_answer_that_breaks_off_before_its_body_shows_that_it_began() -> None:
    wire = answered(START, is_sound=False)
    assert b"".join(wire.writes).startswith(BEGIN)
    assert wire.is_closed


def test_who_waits_to_send_a_body_is_told_at_once() -> None:
    first, second = answered(
        START, body(b"done"), method="POST", head=b"expect: 100-continue\r\ncontent-length: 0\r\n"
    ).writes
    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert second.startswith(BEGIN)
