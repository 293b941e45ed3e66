"""HTTP/1.1 with bounds: uvicorn's own reader takes any headers at any pace, and waits for ever where nobody reads.

What is refused here never reaches the application, and the refusal comes in its turn: behind the answers to
the requests before it on the same connection.
"""

from __future__ import annotations

import asyncio
from asyncio import Transport
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEADERS = 100
_MAX_LENGTH_DIGITS = 18
"""More can overflow the 64 bits of who reads the length before or after us."""
_VERSIONS = frozenset({"1.0", "1.1"})
_END = b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_MALFORMED = b"HTTP/1.1 400 Bad Request" + _END
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout" + _END
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large" + _END


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What a connection may take."""

    max_header_bytes: int
    """The longest request line and headers together; what stands around a chunk of a body may be as long again."""
    header_timeout_s: float
    """A client has this long to send them, from its first byte that belongs to no open request."""
    send_timeout_s: float
    """A client has this long to make room for what is written for it."""


def bounded_protocol(limits: HttpLimits) -> type[asyncio.Protocol]:
    """Make uvicorn's protocol with limits."""
    return type("LimitedHttpProtocol", (_BoundedHttpProtocol,), {"limits": limits})


class _BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection where headers do not come to an end, or nobody reads."""

    limits: ClassVar[HttpLimits]

    def connection_made(self, transport: Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]: as in the parent
        super().connection_made(transport)
        self._header_bytes = 0
        self._chunk_bytes = 0
        self._in_headers = True
        self._is_around_chunks = False
        self._start_header_timer()
        self._send_timer: asyncio.TimerHandle | None = None
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._refusal: bytes | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_timer.cancel()
        self._stop_send_timer()
        for cycle in self._unanswered:  # the parent tells the newest alone
            _tell_client_left(cycle)
            cycle.transport = self.transport
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return  # where the next request begins is not known any more
        self._chunk_bytes = len(data)
        if self._in_fields:
            self._header_bytes += self._chunk_bytes
        super().data_received(data)
        if self._in_fields and self._header_bytes > self.limits.max_header_bytes:
            self._refuse(_TOO_LARGE)
        elif self._refusal is None and not self._unanswered and self._header_timer.cancelled():
            # Empty lines, or the rest of a body that is answered already: uvicorn's own timer ended with them.
            self._start_header_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = self._chunk_bytes
        self._num_fields = 0
        self._header_timer.cancel()
        self._start_header_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # else a trailer: whether the application would see it hangs on how the bytes are cut
            super().on_header(name, value)
        self._num_fields += 1
        if self._num_fields > MAX_HEADERS or len(name) + len(value) > self.limits.max_header_bytes:
            # The parser turns this into its own error, and the connection gets a 400.
            raise ValueError("too many headers, or one too long")

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        if self.parser.get_http_version() not in _VERSIONS:
            raise ValueError("another version of HTTP")
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise ValueError("a coding of the body that readers take differently")
        if any(len(value) > _MAX_LENGTH_DIGITS for name, value in self.headers if name == b"content-length"):
            raise ValueError("a length that readers take differently")
        super().on_headers_complete()
        self._in_headers = False
        if codings:
            self._count_around_chunks()
        self._header_timer.cancel()
        self._unanswered.append(self.cycle)
        if self.scope["method"] != "HEAD":
            self.cycle.transport = _HeadWithBody(self.cycle, self.transport)

    def on_chunk_header(self) -> None:
        self._count_around_chunks()  # behind the last one's size there are trailers, not a body

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._is_around_chunks = False

    def on_chunk_complete(self) -> None:
        self._count_around_chunks()

    def _count_around_chunks(self) -> None:
        """Count what is no body, a chunk's size, its extensions, trailers, from the next read on, as headers are."""
        self._is_around_chunks = True
        self._header_bytes = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_around_chunks = False
        # Where in this chunk the next request begins is not told: its headers count from the next chunk on. What is
        # not counted is at most one read of the socket.
        self._chunk_bytes = 0

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        super().on_response_complete()
        self._refuse_in_turn()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parent's words for its log
        self._refuse(_MALFORMED)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.limits.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_send_timer()
        super().resume_writing()

    @property
    def _in_fields(self) -> bool:
        return self._in_headers or self._is_around_chunks

    def _unsupported_upgrade_warning(self) -> None:
        # The request is answered as if it had not asked, but the parser reads nothing behind it: nobody may wait.
        self.cycle.keep_alive = False

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_timeout_s, self._give_up_on_headers)

    def _give_up_on_headers(self) -> None:
        self._refuse(_TOO_SLOW if self._in_headers and self._header_bytes else b"")

    def _refuse(self, answer: bytes) -> None:
        if self._refusal is not None:
            return
        self._refusal = answer
        self._header_timer.cancel()
        if not self._in_headers and self.cycle.more_body:
            self._take_back_last_request()
        self._refuse_in_turn()

    def _take_back_last_request(self) -> None:
        """Forget the request whose body is wrong; the refusal is its answer, if it has none yet."""
        if self.cycle.response_started:
            self._refusal = b""
            self.cycle.transport.write(b"")  # a head that waits for its body
        if self.cycle.response_complete:
            return
        self._unanswered.pop()
        if self._unanswered:  # it waits behind them; the newest is on the left
            self.pipeline.popleft()
        else:
            _tell_client_left(self.cycle)

    def _refuse_in_turn(self) -> None:
        if self._refusal is not None and not self._unanswered and not self.transport.is_closing():
            self.transport.write(self._refusal)
            self.transport.close()


class _HeadWithBody(Transport):
    """Where one answer is written: its head goes with the first of its body, since each write is a system call.

    On the machine of the lab notes ("A turn of the loop") one takes 0.2 ms, a fifth of what ending an answer takes.
    Once the head is out, the answer is written directly: two objects that hold each other are the garbage collector's.
    """

    def __init__(self, cycle: RequestResponseCycle, transport: Transport) -> None:
        super().__init__()
        self._cycle = cycle
        self._transport = transport
        self._head = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._cycle.response_started and not self._head:
            self._head = bytes(data)
        else:  # also where somebody waits to be told to send the body
            self._transport.write(self._head + data)
            self._cycle.transport = self._transport if self._head else self

    def close(self) -> None:
        if self._head:  # of an answer that broke off
            self._transport.write(self._head)
        self._cycle.transport = self._transport
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def _tell_client_left(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()
