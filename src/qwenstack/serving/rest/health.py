"""Whether the server lives, whether it can answer, and how it does: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

from typing import Literal, NotRequired

from fastapi import Response
from fastapi.routing import APIRouter
from typing_extensions import TypedDict

from qwenstack.serving.access import MetricsRoute, PublicRoute
from qwenstack.serving.metrics import CONTENT_TYPE, Metrics
from qwenstack.serving.readiness import STATS_TIMEOUT_S, why_not_ready
from qwenstack.serving.rest.endpoint import Backend, json_response, key_router


class Health(TypedDict):
    """What a probe is told."""

    status: Literal["alive", "ready", "not ready"]
    reason: NotRequired[str]


def health_routes(backend: Backend) -> APIRouter:
    """Make the probes, open to everyone."""
    router = APIRouter(route_class=PublicRoute)

    @router.get("/livez", summary="Tell that the server lives", response_model=Health)
    async def live() -> Response:
        """Answer as long as the server runs, whatever the model does."""
        health: Health = {"status": "alive"}
        return json_response(health)

    async def ready() -> Response:
        """Tell whether the model answers."""
        health = await _readiness(backend)
        return json_response(health, status=200 if health["status"] == "ready" else 503)

    for path in ("/readyz", "/health"):
        router.add_api_route(
            path,
            ready,
            summary="Tell whether the model answers",
            operation_id=f"ready_{path[1:]}",
            response_model=Health,
            responses={503: {"model": Health, "description": "Not yet, or not any more."}},
        )
    return router


def metrics_routes(backend: Backend, metrics: Metrics) -> APIRouter:
    """Make the page that Prometheus reads."""
    router = key_router(MetricsRoute)

    @router.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def read_metrics() -> Response:
        """Write the counters; those of the engine are left out while it does not answer."""
        stats = await backend.service.stats(timeout_s=STATS_TIMEOUT_S)
        return Response(metrics.render(stats), headers={"Content-Type": CONTENT_TYPE})

    return router


async def _readiness(backend: Backend) -> Health:
    reason = await why_not_ready(backend.service, backend.lifetime)
    return {"status": "ready"} if reason is None else {"status": "not ready", "reason": reason}
