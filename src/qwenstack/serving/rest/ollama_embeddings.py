"""`POST /api/embed`, `POST /api/embeddings`: Ollama's wire of the embedding model."""

from __future__ import annotations

import asyncio
import time

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.connection import PiecedResponse
from qwenstack.serving.embedding_service import EmbeddingJob, Embeddings
from qwenstack.serving.rest.endpoint import Backend, error_responses, identity_of, json_response, key_router
from qwenstack.serving.rest.ollama import OllamaRoute
from qwenstack.serving.wire.ollama import OllamaErrorBody
from qwenstack.serving.wire.ollama_embeddings import (
    OllamaEmbeddingsRequest,
    OllamaEmbeddingsResponse,
    OllamaEmbedRequest,
    OllamaEmbedResponse,
    write_embed,
    write_one_embedding,
)
from qwenstack.serving.wire.pieces import encode_in_pieces


def ollama_embedding_routes(backend: Backend) -> APIRouter:
    """Make the endpoints."""
    router = key_router(OllamaRoute, OllamaErrorBody)
    responses = error_responses(400, 404, 413, 415, 500, 503, body=OllamaErrorBody)

    async def make(job: EmbeddingJob, model: str, request: Request) -> Embeddings:
        return await backend.embeddings.embed(job, model=model, caller=identity_of(request))

    @router.post("/api/embed", summary="Embed texts (Ollama)", response_model=OllamaEmbedResponse, responses=responses)
    async def embed(body: OllamaEmbedRequest, request: Request) -> Response:
        """Return a vector for each text."""

        async def embed_all() -> list[bytes]:
            started_ns = time.monotonic_ns()
            made = await make(body.to_job(), body.model, request)
            return await asyncio.to_thread(_encode, made, time.monotonic_ns() - started_ns)

        return PiecedResponse(await backend.run(request, embed_all()))

    @router.post(
        "/api/embeddings",
        summary="Embed one text (Ollama)",
        response_model=OllamaEmbeddingsResponse,
        responses=responses,
    )
    async def embed_one(body: OllamaEmbeddingsRequest, request: Request) -> Response:
        """Return the vector of one text."""
        return json_response(write_one_embedding(await backend.run(request, make(body.to_job(), body.model, request))))

    return router


def _encode(made: Embeddings, duration_ns: int) -> list[bytes]:
    return encode_in_pieces(write_embed(made, duration_ns), "embeddings")
