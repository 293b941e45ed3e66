"""How a description of a call becomes a method, written once for both clients.

A group of calls belongs to a transport. Where that waits, the method returns the result; where it is asynchronous, an
awaitable of it. Type checkers know which.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from qwenstack.client.call import Call, StreamCall
from qwenstack.client.pages import Page, each_item
from qwenstack.client.retry import Flow, RetryPolicy, Source
from qwenstack.client.transport import AsyncStream, AsyncTransport, Stream, Transport

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Event = TypeVar("Event")
Final = TypeVar("Final")
Item = TypeVar("Item")
TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)


class Group(Generic[TransportT]):
    """Calls that belong together."""

    def __init__(self, transport: TransportT) -> None:
        """Send through this."""
        self._transport: TransportT = transport

    @property
    def transport(self) -> TransportT:
        """What sends."""
        return self._transport


class Endpoint(Generic[Parameters, Result]):
    """A method that makes one call."""

    def __init__(self, describe: Callable[Parameters, Call[Result]]) -> None:
        """Take the function that describes the call."""
        self._describe = describe

    @overload
    def __get__(self, group: Group[Transport], kind: object = None) -> Callable[Parameters, Result]: ...
    @overload
    def __get__(self, group: Group[AsyncTransport], kind: object = None) -> Callable[Parameters, Awaitable[Result]]: ...
    def __get__(self, group: Group[Any], kind: object = None) -> Callable[Parameters, Any]:
        """Return the method."""

        @functools.wraps(self._describe)
        def method(*args: Parameters.args, **kwargs: Parameters.kwargs) -> object:
            return group.transport.send(self._describe(*args, **kwargs))

        return method


class StreamEndpoint(Generic[Parameters, Event, Final]):
    """A method that opens a stream."""

    def __init__(self, describe: Callable[Parameters, StreamCall[Event, Final]]) -> None:
        """Take the function that describes the call."""
        self._describe = describe

    @overload
    def __get__(self, group: Group[Transport], kind: object = None) -> Callable[Parameters, Stream[Event, Final]]: ...
    @overload
    def __get__(
        self, group: Group[AsyncTransport], kind: object = None
    ) -> Callable[Parameters, AsyncStream[Event, Final]]: ...
    def __get__(self, group: Group[Any], kind: object = None) -> Callable[Parameters, Any]:
        """Return the method."""

        @functools.wraps(self._describe)
        def method(*args: Parameters.args, **kwargs: Parameters.kwargs) -> object:
            return group.transport.open(self._describe(*args, **kwargs))

        return method


class FlowEndpoint(Generic[Parameters, Result]):
    """A method that takes several calls, such as waiting for something."""

    def __init__(self, begin: Callable[Concatenate[RetryPolicy, Parameters], Flow[Result]]) -> None:
        """Take the function that makes the flow."""
        self._begin = begin

    @overload
    def __get__(self, group: Group[Transport], kind: object = None) -> Callable[Parameters, Result]: ...
    @overload
    def __get__(self, group: Group[AsyncTransport], kind: object = None) -> Callable[Parameters, Awaitable[Result]]: ...
    def __get__(self, group: Group[Any], kind: object = None) -> Callable[Parameters, Any]:
        """Return the method."""

        @functools.wraps(self._begin)
        def method(*args: Parameters.args, **kwargs: Parameters.kwargs) -> object:
            return group.transport.run(self._begin(group.transport.policy, *args, **kwargs))

        return method


class ItemsEndpoint(Generic[Parameters, Item]):
    """A method that takes several calls and yields what they bring."""

    def __init__(self, begin: Callable[Concatenate[RetryPolicy, Parameters], Source[Item]]) -> None:
        """Take the function that makes the source."""
        self._begin = begin

    @overload
    def __get__(self, group: Group[Transport], kind: object = None) -> Callable[Parameters, Generator[Item]]: ...
    @overload
    def __get__(
        self, group: Group[AsyncTransport], kind: object = None
    ) -> Callable[Parameters, AsyncGenerator[Item]]: ...
    def __get__(self, group: Group[Any], kind: object = None) -> Callable[Parameters, Any]:
        """Return the method."""

        @functools.wraps(self._begin)
        def method(*args: Parameters.args, **kwargs: Parameters.kwargs) -> object:
            return group.transport.iterate(self._begin(group.transport.policy, *args, **kwargs))

        return method


class PagesEndpoint(ItemsEndpoint[Parameters, Item]):
    """A method that yields all items of a list, a page at a time."""

    def __init__(self, describe: Callable[Parameters, Call[Page[Item]]]) -> None:
        """Take the function that describes the first page."""

        @functools.wraps(describe)
        def begin(policy: RetryPolicy, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Source[Item]:
            return each_item(policy, describe(*args, **kwargs))

        super().__init__(begin)
