"""`GET /v1/models`."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.rest.endpoint import Backend, error_responses, identity_of, json_response, key_router
from qwenstack.serving.wire.models import Model, ModelList, write_adapter, write_embedder, write_model


def model_routes(backend: Backend) -> APIRouter:
    """Make the endpoints."""
    router = key_router()

    @router.get("/v1/models", summary="List the models", response_model=ModelList)
    async def list_models(request: Request) -> Response:
        """List what is served to this caller: the model, it with each of its adapters, and the one that embeds."""
        card, caller = backend.service.card, identity_of(request)
        names = backend.service.names_for(caller)
        data = [write_model(card) if name == card.id else write_adapter(name, card) for name in names]
        embedder = backend.embeddings.card_for(caller)
        if embedder is not None:
            data.append(write_embedder(embedder))
        models: ModelList = {"object": "list", "data": data}
        return json_response(models)

    # Names of models have slashes: the rest of the path is the id.
    @router.get(
        "/v1/models/{model_id:path}",
        summary="Describe a model",
        response_model=Model,
        responses=error_responses(404),
    )
    async def retrieve_model(model_id: str, request: Request) -> Response:
        """Describe the model of this id; `default` is a name of the one that answers."""
        caller = identity_of(request)
        if backend.embeddings.is_named(model_id):
            return json_response(write_embedder(backend.embeddings.check_model(model_id, caller)))
        adapter, card = backend.service.adapter_of(model_id, caller), backend.service.card
        return json_response(write_model(card) if adapter is None else write_adapter(adapter, card))

    return router
