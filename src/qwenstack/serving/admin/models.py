"""`/admin/v1/models`: what is served, and how its engine does."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from fastapi import Response
from fastapi.routing import APIRouter
from typing_extensions import TypedDict

from qwenstack.core.protocols import EngineStats
from qwenstack.serving.access import AdminRoute
from qwenstack.serving.rest.endpoint import json_response, key_router
from qwenstack.serving.rest.health import STATS_TIMEOUT_S
from qwenstack.serving.service import GenerationService
from qwenstack.serving.wire.models import Model, write_adapter, write_model


class EngineBody(TypedDict):
    """The engine's counters since its start."""

    num_requests_running: int
    num_requests_waiting: int
    num_blocks_total: int
    num_blocks_free: int
    num_preemptions: int
    prompt_tokens: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    prefix_cache_disk_hits: int
    num_steps: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_repetition_stops: int


class ServedModels(TypedDict):
    """The model, it with each of its adapters, and its engine."""

    object: Literal["list"]
    data: list[Model]
    engine: EngineBody | None
    """Null while the engine does not answer."""


def model_routes(service: GenerationService) -> APIRouter:
    """Make the endpoint."""
    router = key_router(AdminRoute)

    @router.get("/admin/v1/models", summary="List what is served", response_model=ServedModels)
    async def list_models() -> Response:
        """List the model and its adapters, with the engine's counters."""
        stats = await service.stats(timeout_s=STATS_TIMEOUT_S)
        card = service.card
        body: ServedModels = {
            "object": "list",
            "data": [write_model(card), *(write_adapter(name, card) for name in service.adapter_names)],
            "engine": None if stats is None else write_stats(stats),
        }
        return json_response(body)

    return router


def write_stats(stats: EngineStats) -> EngineBody:
    """Write the counters."""
    return EngineBody(**asdict(stats))
