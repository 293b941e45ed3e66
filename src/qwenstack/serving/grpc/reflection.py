"""`grpc.reflection.v1alpha.ServerReflection`: the contract itself, for tools such as grpcurl."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing
from typing import cast

from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from qwenstack.serving.grpc.method import Call, takes
from qwenstack.serving.identity import Access

_Answer = Callable[[AsyncIterator[ServerReflectionRequest], None], AsyncGenerator[ServerReflectionResponse]]


class ReflectionRpc:
    """Answers what the services of a server are."""

    descriptor = cast("ServiceDescriptor", reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"])

    def __init__(self, services: Collection[str]) -> None:
        """Tell of services by their full names."""
        servicer = aio.ReflectionServicer([*services, self.descriptor.full_name])
        self._answer = cast("_Answer", servicer.ServerReflectionInfo)

    @takes(Access.INFERENCE)
    async def server_reflection_info(
        self,
        requests: AsyncIterator[ServerReflectionRequest],
        call: Call,  # noqa: ARG002
    ) -> AsyncGenerator[ServerReflectionResponse]:
        """Answer question by question."""
        async with aclosing(self._answer(requests, None)) as answers:
            async for answer in answers:
                yield answer
