"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.connection import PiecedResponse
from qwenstack.serving.embedding_service import Embeddings
from qwenstack.serving.rest.endpoint import Backend, error_responses, identity_of, key_router
from qwenstack.serving.wire.embeddings import EmbeddingList, EmbeddingRequest, EncodingFormat, write_embeddings
from qwenstack.serving.wire.pieces import encode_in_pieces


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

        async def embed() -> list[bytes]:
            made = await backend.embeddings.embed(body.to_job(), model=body.model, caller=identity_of(request))
            return await asyncio.to_thread(_encode, made, body.encoding_format)

        return PiecedResponse(await backend.run(request, embed()))

    return router


def _encode(made: Embeddings, encoding_format: EncodingFormat | None) -> list[bytes]:
    return encode_in_pieces(write_embeddings(made, encoding_format), "data")
