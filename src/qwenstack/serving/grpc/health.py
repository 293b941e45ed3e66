"""`grpc.health.v1.Health`: whether the model answers, for everyone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import cast

from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from qwenstack.core.errors import CapacityError
from qwenstack.serving.errors import HttpError
from qwenstack.serving.grpc.method import Call, takes
from qwenstack.serving.identity import Access

LOOK_EVERY_S = 1.0
"""How soon a watcher is told of a change."""
MAX_WATCHERS = 64
"""Anybody can watch, and each who does takes one of the server's places for calls."""


IsReady = Callable[[], Awaitable[bool]]


class HealthRpc:
    """Tells of the services of a server."""

    descriptor = cast("ServiceDescriptor", health_pb2.DESCRIPTOR.services_by_name["Health"])

    def __init__(self, services: Mapping[str, IsReady]) -> None:
        """Tell of services by their full names; the empty name is the whole server."""
        self._services = services
        self._num_watchers = 0

    @takes(Access.PUBLIC)
    async def check(self, request: HealthCheckRequest, call: Call) -> HealthCheckResponse:  # noqa: ARG002
        """Tell of one service."""
        if request.service not in self._services:
            raise HttpError(404, f"There is no service {request.service[:100]!r}.", code="not_found", param="service")
        return await self._status_of(request.service)

    @takes(Access.PUBLIC)
    async def list(self, request: HealthListRequest, call: Call) -> HealthListResponse:  # noqa: ARG002
        """Tell of all services."""
        return HealthListResponse(statuses={name: await self._status_of(name) for name in self._services})

    @takes(Access.PUBLIC)
    async def watch(self, request: HealthCheckRequest, call: Call) -> AsyncGenerator[HealthCheckResponse]:  # noqa: ARG002
        """Tell of one service now, and whenever that changes."""
        if self._num_watchers >= MAX_WATCHERS:
            raise CapacityError(f"{MAX_WATCHERS} callers watch already. Ask with `Check` instead.")
        self._num_watchers += 1
        try:
            told: HealthCheckResponse | None = None
            while True:
                status = await self._status_of(request.service)
                if status != told:
                    yield status
                told = status
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            self._num_watchers -= 1

    async def _status_of(self, service: str) -> HealthCheckResponse:
        is_ready = self._services.get(service)
        if is_ready is None:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        status = HealthCheckResponse.SERVING if await is_ready() else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)
