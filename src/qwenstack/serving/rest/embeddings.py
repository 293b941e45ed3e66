"""`POST /v1/embeddings`."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.rest.endpoint import Backend, error_responses, identity_of, json_response, key_router
from qwenstack.serving.wire.embeddings import EmbeddingList, EmbeddingRequest, write_embeddings


def embedding_routes(backend: Backend) -> APIRouter:
    """Make the endpoint."""
    router = key_router()

    @router.post(
        "/v1/embeddings",
        summary="Embed texts",
        response_model=EmbeddingList,
        responses=error_responses(400, 404, 413, 415, 500, 503),
    )
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Return a vector for each text."""
        work = backend.embeddings.embed(body.to_job(), model=body.model, caller=identity_of(request))
        return json_response(write_embeddings(await backend.run(request, work), body.encoding_format))

    return router
