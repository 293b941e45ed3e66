"""A small HTTP/1.1 client: cheap enough for hundreds of streams beside the server on one core, and strict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from reliability.server import Address

READ_LIMIT = 1 << 22


class BrokenAnswerError(Exception):
    """What came is no whole HTTP answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the document in the body."""
        return json.loads(self.body)


class Connection:
    """One connection, used for one request after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, server: Address, *, receive_bytes: int | None = None) -> Connection:
        """Connect; a small receive buffer makes a slow reader felt at the other end."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(sock, (server.host, server.port))
        return cls(*await asyncio.open_connection(sock=sock, limit=READ_LIMIT))

    async def ask(self, method: str, target: str, *, key: str = "", body: object = None) -> Answer:
        """Send a request and read its whole answer.

        Raises:
            BrokenAnswerError: the connection ended before the answer did.
        """
        status, headers = await self.begin(method, target, key=key, body=body)
        content = b"".join([chunk async for chunk in self._content(headers)])
        return Answer(status=status, headers=headers, body=content)

    async def events(self, target: str, *, key: str, body: Mapping[str, object]) -> AsyncGenerator[bytes]:
        """Send a request and yield the data of its server-sent events.

        Raises:
            BrokenAnswerError: the answer is no stream, or has no end.
        """
        status, headers = await self.begin("POST", target, key=key, body=dict(body) | {"stream": True})
        if status != 200:
            raise BrokenAnswerError(f"status {status}")
        rest = b""
        async for chunk in self._content(headers):
            *whole, rest = (rest + chunk).split(b"\n\n")
            for event in whole:
                if event.startswith(b"data: "):
                    yield event[6:]
        if rest:
            raise BrokenAnswerError("an event without an end")

    async def begin(self, method: str, target: str, *, key: str, body: object) -> tuple[int, dict[str, str]]:
        """Send a request and read the head of its answer."""
        self.writer.write(write_request(method, target, key=key, body=body))
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BrokenAnswerError("no head") from error
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def _content(self, headers: Mapping[str, str]) -> AsyncGenerator[bytes]:
        try:
            if headers.get("transfer-encoding") != "chunked":
                yield await self.reader.readexactly(int(headers.get("content-length", "0")))
                return
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BrokenAnswerError("the body has no end") from error

    async def close(self) -> None:
        """Say goodbye properly."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Leave as a machine that loses power does: with a reset, and without reading what is on its way."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def write_request(method: str, target: str, *, key: str = "", body: object = None) -> bytes:
    """Return the bytes of a request."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


class Pool:
    """Connections that are kept open between requests."""

    def __init__(self, server: Address) -> None:
        self._server = server
        self._idle: list[Connection] = []

    async def ask(self, method: str, target: str, *, key: str, body: object = None) -> Answer:
        """Send a request over a connection that is free, or a new one."""
        connection = self._take_idle() or await Connection.open(self._server)
        answer = await connection.ask(method, target, key=key, body=body)
        self._idle.append(connection)
        return answer

    def _take_idle(self) -> Connection | None:
        """Take the one that was used last of those that the server has not closed for their idleness."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof():
                return connection
        return None

    async def close(self) -> None:
        """Close them."""
        for connection in self._idle:
            await connection.close()
