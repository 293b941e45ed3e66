"""HTTP/1.1 with bounded headers: uvicorn's own reader takes any number, of any size, at any pace."""

from __future__ import annotations

import asyncio
from asyncio import Transport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS = 100
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def bounded_protocol(*, max_header_bytes: int, header_timeout_s: float) -> type[asyncio.Protocol]:
    """Make uvicorn's protocol with limits on the size and the pace of headers."""

    class BoundedHttpProtocol(HttpToolsProtocol):
        """Counts bytes until the headers are whole, and closes the connection where they do not come to an end."""

        def connection_made(self, transport: Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]: as in the parent
            super().connection_made(transport)
            self._header_bytes = 0
            self._in_headers = True
            self._header_timer = self.loop.call_later(header_timeout_s, self._give_up_on_headers)

        def connection_lost(self, exc: Exception | None) -> None:
            self._header_timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            # What a chunk holds beside headers is at most one read of the socket, and counted only while they go on.
            self._header_bytes += len(data)
            super().data_received(data)
            if self._in_headers and self._header_bytes > max_header_bytes and not self.transport.is_closing():
                self._refuse(_TOO_LARGE)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_headers = True
            self._header_timer.cancel()
            self._header_timer = self.loop.call_later(header_timeout_s, self._give_up_on_headers)

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            if len(self.headers) > MAX_HEADERS or len(name) + len(value) > max_header_bytes:
                # The parser turns this into its own error, and the connection gets a 400.
                raise ValueError("too many headers, or one too long")

        def on_headers_complete(self) -> None:
            self._in_headers = False
            self._header_bytes = 0
            self._header_timer.cancel()
            super().on_headers_complete()

        def _give_up_on_headers(self) -> None:
            if self._in_headers and not self.transport.is_closing():
                self._refuse(_TOO_SLOW if self._header_bytes else b"")

        def _refuse(self, answer: bytes) -> None:
            self.transport.write(answer)
            self.transport.close()

    return BoundedHttpProtocol
