"""`GET /api/tags`, `GET /api/ps`, `POST /api/show`, `GET /api/version`: what Ollama's clients ask before they ask."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.rest.endpoint import Backend, error_responses, identity_of, json_response, key_router
from qwenstack.serving.rest.ollama import OllamaRoute
from qwenstack.serving.wire.ollama import OllamaErrorBody, ShowRequest, VersionResponse
from qwenstack.serving.wire.ollama_models import (
    RunningResponse,
    ShowResponse,
    TagsResponse,
    write_listed,
    write_running,
    write_shown,
)

OLLAMA_VERSION = "0.9.0"
"""The first with `think`, the youngest field that is read here. Clients look whether it is new enough for them (VS
Code's Copilot: 0.6.4), and so mean the wire, not the program."""


def ollama_model_routes(backend: Backend) -> APIRouter:
    """Make the endpoints."""
    router = key_router(OllamaRoute, OllamaErrorBody)
    service, embeddings = backend.service, backend.embeddings

    @router.get("/api/tags", summary="List the models (Ollama)", response_model=TagsResponse)
    async def list_tags(request: Request) -> Response:
        """List what is served to this caller: the model, it with each of its adapters, and the one that embeds."""
        caller = identity_of(request)
        listed = [write_listed(name, service.card) for name in service.names_for(caller)]
        if (embedder := embeddings.card_for(caller)) is not None:
            listed.append(write_listed(embedder.id, embedder))
        tags: TagsResponse = {"models": listed}
        return json_response(tags)

    @router.get("/api/ps", summary="List the models in memory (Ollama)", response_model=RunningResponse)
    async def list_running(request: Request) -> Response:
        """List what is served to this caller and in memory; the model that embeds is from its first request on."""
        caller = identity_of(request)
        running = [write_running(name, service.card) for name in service.names_for(caller)]
        if (embedder := embeddings.card_for(caller)) is not None and embeddings.is_loaded:
            running.append(write_running(embedder.id, embedder))
        models: RunningResponse = {"models": running}
        return json_response(models)

    @router.post(
        "/api/show",
        summary="Describe a model (Ollama)",
        response_model=ShowResponse,
        responses=error_responses(400, 404, 413, 415, body=OllamaErrorBody),
    )
    async def show(body: ShowRequest, request: Request) -> Response:
        """Say what a model is and can; `default` is the one that answers."""
        caller, model, defaults = identity_of(request), body.wanted(), service.default_params
        if embeddings.is_named(model):
            card = embeddings.check_model(model, caller)
            return json_response(write_shown(card.id, card, defaults))
        adapter = service.adapter_of(model, caller)
        return json_response(write_shown(adapter or service.card.id, service.card, defaults))

    @router.get("/api/version", summary="Tell the version (Ollama)", response_model=VersionResponse)
    async def tell_version() -> Response:
        """Tell which of Ollama's versions has what this server has."""
        version: VersionResponse = {"version": OLLAMA_VERSION}
        return json_response(version)

    return router
