"""The life of one answer on its connection: work ends as soon as the client leaves or the server stops."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenstack.serving.errors import ServerStoppingError

Result = TypeVar("Result")

LEAST_BYTES_A_SECOND = 1 << 20
"""That a client reads of what is long: 43 MB, the longest answer of vectors, are held for 71 s at the most."""


class Lifetime:
    """Whether the server is still serving; every open answer watches it."""

    def __init__(self) -> None:
        """Start serving."""
        self._is_stopping = False
        self._open: set[_Endable] = set()

    @property
    def is_stopping(self) -> bool:
        """Whether the server takes no more work."""
        return self._is_stopping

    def stop(self) -> None:
        """Cancel every open answer; each is told why."""
        self._is_stopping = True
        for answer in list(self._open):
            answer.end(_stopping())

    @contextmanager
    def answering(self, work: Coroutine[object, object, object]) -> Generator[_Endable]:
        """Let `work`, which the current task does in this block, be ended, by the server's end among others.

        Raises:
            ServerStoppingError: the server stops; where it did so before, the work is closed and never begins.
        """
        if self._is_stopping:
            work.close()
            raise _stopping()
        answer = _Endable()
        self._open.add(answer)
        try:
            with answer:
                yield answer
        finally:
            self._open.remove(answer)


async def run_while_connected(work: Coroutine[object, object, Result], receive: Receive, lifetime: Lifetime) -> Result:
    """Run `work`, and cancel it at once when there is nobody to answer.

    It runs in the caller's own task: beside a crowd of requests each wait for another task is a wait for all of them.

    Raises:
        ClientDisconnect: the client left.
        ServerStoppingError: the server stops.
    """
    with lifetime.answering(work) as answer:
        watch = asyncio.ensure_future(_end_when_disconnected(answer, receive))
        try:
            return await work
        finally:
            watch.cancel()


async def run_while_serving(work: Coroutine[object, object, Result], lifetime: Lifetime) -> Result:
    """Run `work`, whose caller is cancelled when the client leaves, and cancel it when the server stops.

    Raises:
        ServerStoppingError: the server stops.
    """
    with lifetime.answering(work):
        return await work


class _Endable:
    """A block of the current task that others can end with a reason, as `asyncio.timeout` ends one after a time.

    Entered once, by the task that makes it.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "answers are made by tasks"
        self._task: asyncio.Task[object] = task
        self._reason: Exception | None = None

    def end(self, reason: Exception) -> None:
        """Cancel what the block is waiting for; `reason` comes out of it. The first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    def __enter__(self) -> None:
        self._others = self._task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reason is None:
            return
        is_ours = self._task.uncancel() <= self._others  # else somebody cancelled the task itself
        if is_ours and kind is not None:  # what failed while it was being cancelled interests nobody
            raise self._reason from None


async def _end_when_disconnected(answer: _Endable, receive: Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception as error:  # noqa: BLE001 - such as a body that goes on behind its end
        answer.end(error)
    else:
        answer.end(ClientDisconnect())


def _stopping() -> ServerStoppingError:
    return ServerStoppingError("The server is shutting down. Try again when it is back.")


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
        self._most_s = grace_s + num_bytes / LEAST_BYTES_A_SECOND

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
