"""`qwenstack.v1.EmbeddingService`."""

from __future__ import annotations

import asyncio

from google.protobuf.descriptor import ServiceDescriptor

from qwenstack.serving.embedding_service import Embeddings, EmbeddingService
from qwenstack.serving.grpc.method import Call, takes
from qwenstack.serving.grpc.requests import read_embedding
from qwenstack.serving.grpc.v1 import embeddings_pb2
from qwenstack.serving.grpc.v1.embeddings_pb2 import Embedding, EmbedRequest, EmbedResponse
from qwenstack.serving.identity import Access


class EmbeddingRpc:
    """Makes vectors of texts."""

    descriptor: ServiceDescriptor = embeddings_pb2.DESCRIPTOR.services_by_name["EmbeddingService"]

    def __init__(self, service: EmbeddingService) -> None:
        """Ask this model."""
        self._service = service

    @takes(Access.INFERENCE)
    async def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """Make a vector of each text."""
        body = read_embedding(request)
        made = await self._service.embed(body.to_job(), model=body.model, caller=call.identity)
        return await asyncio.to_thread(_write, made)


def _write(made: Embeddings) -> EmbedResponse:
    return EmbedResponse(
        model=made.model,
        embeddings=[Embedding(values=vector) for vector in made.vectors],
        prompt_tokens=made.num_tokens,
    )
