"""Methods that can be called: what each takes and gives is read from the contract, who may call it from its handler.

A service is a class with the `descriptor` of its part of the contract, and a handler for each method, named in Python's
way and marked with `takes`. A method without a handler or a mark keeps the server from starting.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.serving.identity import Access, Identity

Handler = TypeVar("Handler", bound=Callable[..., object])
_ACCESS = "_qwenstack_access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who calls, as the gate found out."""

    identity: Identity
    request_id: str
    """Made by the server."""


class Service(Protocol):
    """The handlers of a service."""

    @property
    def descriptor(self) -> ServiceDescriptor:
        """Its part of the contract."""
        ...


Answer = Callable[[AsyncIterator[bytes], Call], AsyncGenerator[bytes]]
"""Turns the messages of a caller into those of the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method that can be called."""

    path: str
    """As it is on the wire: `/package.Service/Method`."""
    access: Access
    answer: Answer


def takes(access: Access) -> Callable[[Handler], Handler]:
    """Declare what it takes to call a method."""

    def declare(handler: Handler) -> Handler:
        setattr(handler, _ACCESS, access)
        return handler

    return declare


def read_methods(services: Iterable[Service]) -> dict[str, Method]:
    """Return the methods of services by their paths.

    Raises:
        ConfigError: a method has no handler, or one that does not say who may call it.
    """
    methods = [_read_method(service, descriptor) for service in services for descriptor in service.descriptor.methods]
    return {method.path: method for method in methods}


def _read_method(service: Service, descriptor: MethodDescriptor) -> Method:
    path = f"/{service.descriptor.full_name}/{descriptor.name}"
    handler = cast("Callable[..., object] | None", getattr(service, _in_snake_case(descriptor.name), None))
    access = cast("Access | None", getattr(handler, _ACCESS, None))
    if handler is None or access is None:
        raise ConfigError(f"Method {path!r} does not declare its access; write its handler and mark it with `takes`.")
    return Method(path=path, access=access, answer=_answer_with(handler, descriptor))


def _answer_with(handler: Callable[..., object], descriptor: MethodDescriptor) -> Answer:
    """Put a handler, which speaks in messages, between streams of bytes; every shape of a method is one of these."""
    request_type = GetMessageClass(descriptor.input_type)

    async def answer(requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes]:
        async with aclosing(_parse_all(request_type, requests)) as messages:
            given = messages if descriptor.client_streaming else await _only(messages)
            if not descriptor.server_streaming:
                yield (await cast("Awaitable[Message]", handler(given, call))).SerializeToString()
                return
            async with aclosing(cast("AsyncGenerator[Message]", handler(given, call))) as responses:
                async for response in responses:
                    yield response.SerializeToString()

    return answer


async def _parse_all(request_type: type[Message], requests: AsyncIterator[bytes]) -> AsyncGenerator[Message]:
    async for data in requests:
        try:
            request = request_type.FromString(data)
        except DecodeError:
            text = f"The message is no `{request_type.DESCRIPTOR.full_name}`. Use the .proto files of this server."
            raise RequestError(text, code="invalid_message") from None
        yield request


async def _only(messages: AsyncIterator[Message]) -> Message:
    """Return the one message that there is to be; a second one is not waited for."""
    async for message in messages:
        return message
    raise RequestError("The call has no message; this method takes one.", code="invalid_message")


def _in_snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
