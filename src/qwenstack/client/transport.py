"""The two ways to send: waiting, or on an event loop. Each does the steps of a flow; nothing is decided here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any, Generic, Self, TypeVar

import httpx
import msgspec

from qwenstack.client.call import Call, Event, StreamCall
from qwenstack.client.disk import new_file, opened
from qwenstack.client.errors import read_error_event
from qwenstack.client.event_stream import DONE, EventReader
from qwenstack.client.retry import (
    Emit,
    Flow,
    Outcome,
    Pause,
    RetryPolicy,
    Save,
    Source,
    Step,
    broken_answer,
    exchange,
    open_answer,
)

Result = TypeVar("Result")
Final = TypeVar("Final")
Item = TypeVar("Item")


class Transport:
    """Sends and waits."""

    def __init__(self, http: httpx.Client, policy: RetryPolicy) -> None:
        """Take over an HTTP client."""
        self.http = http
        self.policy = policy

    def send(self, call: Call[Result]) -> Result:
        """Send a call and return its result."""
        return self.run(exchange(call, self.policy))

    def open(self, call: StreamCall[Event, Final]) -> Stream[Event, Final]:
        """Prepare a stream; it is opened by `with`."""
        return Stream(self, call)

    def run(self, flow: Flow[Result]) -> Result:
        """Do what a flow asks for until it has its result."""
        outcome: Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                result: Result = end.value
                return result
            outcome = self._do(step)

    def iterate(self, source: Source[Item]) -> Generator[Item]:
        """Do what a source asks for and yield what it brings."""
        outcome: Outcome = None
        with contextlib.closing(source):
            while True:
                try:
                    step = source.send(outcome)
                except StopIteration:
                    return
                if isinstance(step, Emit):
                    outcome = None
                    yield step.item
                else:
                    outcome = self._do(step)

    def _do(self, step: Step) -> Outcome:
        if isinstance(step, Pause):
            time.sleep(step.delay_s)
            return None
        try:
            if isinstance(step, Save):
                return self._save(step)
            with opened_request(self.http, step.call) as request:
                response = self.http.send(request, stream=True)
            if not (step.is_streamed and response.is_success):
                response.read()
        except httpx.TransportError as error:
            return error
        return response

    def _save(self, step: Save) -> None:
        with contextlib.closing(step.response), new_file(step.path) as file:
            for piece in step.response.iter_bytes():
                file.write(piece)


class AsyncTransport:
    """Sends on an event loop."""

    def __init__(self, http: httpx.AsyncClient, policy: RetryPolicy) -> None:
        """Take over an HTTP client."""
        self.http = http
        self.policy = policy

    async def send(self, call: Call[Result]) -> Result:
        """Send a call and return its result."""
        return await self.run(exchange(call, self.policy))

    def open(self, call: StreamCall[Event, Final]) -> AsyncStream[Event, Final]:
        """Prepare a stream; it is opened by `async with`."""
        return AsyncStream(self, call)

    async def run(self, flow: Flow[Result]) -> Result:
        """Do what a flow asks for until it has its result."""
        outcome: Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                result: Result = end.value
                return result
            outcome = await self._do(step)

    async def iterate(self, source: Source[Item]) -> AsyncGenerator[Item]:
        """Do what a source asks for and yield what it brings."""
        outcome: Outcome = None
        with contextlib.closing(source):
            while True:
                try:
                    step = source.send(outcome)
                except StopIteration:
                    return
                if isinstance(step, Emit):
                    outcome = None
                    yield step.item
                else:
                    outcome = await self._do(step)

    async def _do(self, step: Step) -> Outcome:
        if isinstance(step, Pause):
            await asyncio.sleep(step.delay_s)
            return None
        try:
            if isinstance(step, Save):
                return await self._save(step)
            with opened_request(self.http, step.call) as request:
                response = await self.http.send(request, stream=True)
            if not (step.is_streamed and response.is_success):
                await response.aread()
        except httpx.TransportError as error:
            return error
        return response

    async def _save(self, step: Save) -> None:
        async with contextlib.aclosing(step.response):
            with new_file(step.path) as file:
                async for piece in step.response.aiter_bytes():
                    file.write(piece)


@contextlib.contextmanager
def opened_request(http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> Generator[httpx.Request]:
    """Write a call as HTTP; the files that it sends are open meanwhile.

    Raises:
        OSError: one of them cannot be read.
    """
    if call.files is None:
        yield build_request(http, call)
        return
    fields = {name: str(value) for name, value in (call.body or {}).items()}
    with opened(call.files) as files:
        yield http.build_request(call.method, call.path, params=call.query, files=files, data=fields)


def build_request(http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
    """Write a call as HTTP."""
    if call.method != "POST":
        return http.build_request(call.method, call.path, params=call.query)
    content = msgspec.json.encode(call.body or {})
    headers = {"Content-Type": "application/json"}
    return http.build_request("POST", call.path, params=call.query, content=content, headers=headers)


class _Pieces(Generic[Event, Final]):
    """What both kinds of streams have in common."""

    def __init__(self, call: StreamCall[Event, Final]) -> None:
        self._call = call
        self._collector = call.collector()
        self._reader = EventReader()
        self._is_over = False
        self._text = ""

    def _events_in(self, chunk: bytes) -> Iterator[Event]:
        """Read what came.

        Raises:
            StatusError: the server says that it failed.
        """
        for data in self._reader.feed(chunk):
            if data == DONE:
                self._is_over = True
                return
            error = read_error_event(data)
            if error is not None:
                raise error
            event = self._call.read_event(data)
            self._text = self._collector.add(event)
            yield event

    def _check_end(self) -> None:
        if not (self._is_over or self._collector.is_complete):
            raise broken_answer()


class Stream(_Pieces[Event, Final]):
    """An answer in pieces: iterate over its events, or over `texts()`; `final()` is the whole.

    Open it with `with`; to leave the block early cancels the answer.
    """

    def __init__(self, transport: Transport, call: StreamCall[Event, Final]) -> None:
        """Prepare; nothing is sent yet."""
        super().__init__(call)
        self._transport = transport
        self._events = self._iterate()
        self._response: httpx.Response | None = None

    def __enter__(self) -> Self:
        flow = open_answer(self._call.call, self._transport.policy, is_streamed=True)
        self._response = self._transport.run(flow)
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()
        if self._response is not None:
            self._response.close()

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def texts(self) -> Iterator[str]:
        """Yield the pieces of the first answer's text."""
        for _ in self._events:
            if self._text:
                yield self._text

    def final(self) -> Final:
        """Wait for the end and return the whole answer."""
        for _ in self._events:
            pass
        return self._collector.result()

    def _iterate(self) -> Generator[Event]:
        assert self._response is not None, "open the stream with `with`"
        try:
            for chunk in self._response.iter_bytes():
                yield from self._events_in(chunk)
        except httpx.TransportError as error:
            raise broken_answer(error) from error
        self._check_end()


class AsyncStream(_Pieces[Event, Final]):
    """An answer in pieces: iterate over its events, or over `texts()`; `await final()` is the whole.

    Open it with `async with`; to leave the block early cancels the answer.
    """

    def __init__(self, transport: AsyncTransport, call: StreamCall[Event, Final]) -> None:
        """Prepare; nothing is sent yet."""
        super().__init__(call)
        self._transport = transport
        self._events = self._iterate()
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> Self:
        flow = open_answer(self._call.call, self._transport.policy, is_streamed=True)
        self._response = await self._transport.run(flow)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._events.aclose()
        if self._response is not None:
            await self._response.aclose()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    async def texts(self) -> AsyncIterator[str]:
        """Yield the pieces of the first answer's text."""
        async for _ in self._events:
            if self._text:
                yield self._text

    async def final(self) -> Final:
        """Wait for the end and return the whole answer."""
        async for _ in self._events:
            pass
        return self._collector.result()

    async def _iterate(self) -> AsyncGenerator[Event]:
        assert self._response is not None, "open the stream with `async with`"
        try:
            async for chunk in self._response.aiter_bytes():
                for event in self._events_in(chunk):
                    yield event
        except httpx.TransportError as error:
            raise broken_answer(error) from error
        self._check_end()
