"""The life of one answer on its connection: work ends as soon as the client leaves or the server stops."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Never, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenstack.serving.errors import ServerStoppingError

Result = TypeVar("Result")

_LEAST_BYTES_A_SECOND = 1 << 20
"""Of a long document: 43 MB, the longest answer of vectors, are held for 71 s at the most."""


class Lifetime:
    """Whether the server is still serving; every open answer watches it."""

    def __init__(self) -> None:
        """Start serving."""
        self._stopping = asyncio.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether the server takes no more work."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Cancel every open answer; each is told why."""
        self._stopping.set()

    async def wait_for_stop(self) -> None:
        """Return when the server stops."""
        await self._stopping.wait()


async def run_while_connected(work: Coroutine[object, object, Result], receive: Receive, lifetime: Lifetime) -> Result:
    """Run `work`, and cancel it at once when there is nobody to answer.

    Raises:
        ClientDisconnect: the client left.
        ServerStoppingError: the server stops.
    """
    return await _run_until(work, _wait_for_disconnect(receive), _wait_for_stop(lifetime))


async def run_while_serving(work: Coroutine[object, object, Result], lifetime: Lifetime) -> Result:
    """Run `work`, whose caller is cancelled when the client leaves, and cancel it when the server stops.

    Raises:
        ServerStoppingError: the server stops.
    """
    return await _run_until(work, _wait_for_stop(lifetime))


async def _run_until(work: Coroutine[object, object, Result], *ends: Coroutine[object, object, Never]) -> Result:
    """Run `work` until it is done, or one of `ends` raises."""
    task = asyncio.ensure_future(work)
    ending = [asyncio.ensure_future(end) for end in ends]
    everything = {task, *ending}
    try:
        done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in everything:
            each.cancel()
        # The cancelled work has given its memory back when this returns, but for what a thread of its has in hands.
        await asyncio.wait(everything)
        reasons = [end.exception() for end in ending if not end.cancelled()]
    if task in done:
        return task.result()
    if not task.cancelled():
        _ = task.exception()  # what failed while it was being cancelled interests nobody
    raise next(reason for reason in reasons if reason is not None)


async def _wait_for_disconnect(receive: Receive) -> Never:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


async def _wait_for_stop(lifetime: Lifetime) -> Never:
    await lifetime.wait_for_stop()
    raise ServerStoppingError("The server is shutting down. Try again when it is back.")


class PiecedResponse(Response):
    """A long JSON document, written in pieces: each waits until the client has room, and is forgotten when it is sent.

    A client that takes too long for the whole is cut off, however regularly it takes a little.
    """

    def __init__(self, pieces: Sequence[bytes], *, grace_s: float = 30.0) -> None:
        """Take over the pieces, of which there is at least one; a client has `grace_s` and a second for each MiB."""
        super().__init__(media_type="application/json")
        num_bytes = sum(map(len, pieces))
        self.headers["content-length"] = str(num_bytes)
        self._pieces = deque(pieces)
        self._most_s = grace_s + num_bytes / _LEAST_BYTES_A_SECOND

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the pieces.

        Raises:
            ClientDisconnect: the client takes too long.
        """
        try:
            async with asyncio.timeout(self._most_s):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                while self._pieces:
                    piece = self._pieces.popleft()
                    await send({"type": "http.response.body", "body": piece, "more_body": bool(self._pieces)})
        except TimeoutError:
            raise ClientDisconnect from None


class EventStream(Response):
    """Events, written as they come.

    The status line waits for the first event, so that a request that fails before it gets a proper status. Writing
    waits for the client: a slow reader holds back its own events in the engine's queue, which `max_tokens` bounds.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        lifetime: Lifetime,
        describe_error: Callable[[Exception], bytes],
        media_type: str,
        ping: bytes,
        ping_interval_s: float,
    ) -> None:
        """Take over the events; the stream closes them whatever happens. `ping` breaks a long silence, if not empty."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._events = events
        self._lifetime = lifetime
        self._describe_error = describe_error
        self._ping = ping
        self._ping_interval_s = ping_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the events until they end, fail, or the client leaves."""
        writer = _Writer(send, status=self.status_code, headers=self.raw_headers)
        heart = asyncio.ensure_future(self._beat(writer))
        try:
            await run_while_connected(self._write_events(writer), receive, self._lifetime)
        except ClientDisconnect:
            return
        except Exception as error:  # any failure: before the first event it gets a status, after it an event
            if not writer.has_started:
                raise
            await writer.write(self._describe_error(error))
        finally:
            heart.cancel()
        await writer.finish()

    async def _write_events(self, writer: _Writer) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                await writer.write(event)

    async def _beat(self, writer: _Writer) -> None:
        while self._ping:
            await asyncio.sleep(self._ping_interval_s)
            if writer.silent_s >= self._ping_interval_s / 2:
                await writer.write(self._ping)


class _Writer:
    """One response, written by the events and by the heart."""

    def __init__(self, send: Send, *, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._status = status
        self._headers = headers
        self._lock = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._last_write = self._clock()
        self.has_started = False

    @property
    def silent_s(self) -> float:
        """Seconds since the last write."""
        return self._clock() - self._last_write

    async def write(self, data: bytes, *, more_body: bool = True) -> None:
        async with self._lock:
            if not self.has_started:
                self.has_started = True
                await self._send({"type": "http.response.start", "status": self._status, "headers": self._headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": more_body})
            self._last_write = self._clock()

    async def finish(self) -> None:
        await self.write(b"", more_body=False)
