"""`GET /v1/models`."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.rest.endpoint import Backend, error_responses, identity_of, json_response, key_router
from qwenstack.serving.wire.models import Model, ModelList, write_adapter, write_model


def model_routes(backend: Backend) -> APIRouter:
    """Make the endpoints."""
    router = key_router()

    @router.get("/v1/models", summary="List the models", response_model=ModelList)
    async def list_models(request: Request) -> Response:
        """List what is served to this caller: the model, and it with each of its adapters."""
        card = backend.service.card
        names = backend.service.names_for(identity_of(request))
        data = [write_model(card) if name == card.id else write_adapter(name, card) for name in names]
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
        """Describe the model of this id; `default` is a name of it too."""
        adapter, card = backend.service.adapter_of(model_id, identity_of(request)), backend.service.card
        return json_response(write_model(card) if adapter is None else write_adapter(adapter, card))

    return router
