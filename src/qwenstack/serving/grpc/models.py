"""`qwenstack.v1.ModelService`."""

from __future__ import annotations

from google.protobuf.descriptor import ServiceDescriptor

from qwenstack.core.protocols import EmbedderCard
from qwenstack.serving.embedding_service import EmbeddingService
from qwenstack.serving.grpc.method import Call, takes
from qwenstack.serving.grpc.v1 import models_pb2
from qwenstack.serving.grpc.v1.models_pb2 import ListModelsRequest, ListModelsResponse, Model
from qwenstack.serving.identity import Access
from qwenstack.serving.service import GenerationService


class ModelRpc:
    """Says what is served."""

    descriptor: ServiceDescriptor = models_pb2.DESCRIPTOR.services_by_name["ModelService"]

    def __init__(self, service: GenerationService, embeddings: EmbeddingService) -> None:
        """Tell of these models and of the first one's adapters."""
        self._service = service
        self._embeddings = embeddings

    @takes(Access.INFERENCE)
    async def list_models(self, request: ListModelsRequest, call: Call) -> ListModelsResponse:  # noqa: ARG002
        """List what the caller may use."""
        models = [self._write(name) for name in self._service.names_for(call.identity)]
        embedder = self._embeddings.card_for(call.identity)
        if embedder is not None:
            models.append(_write_embedder(embedder))
        return ListModelsResponse(models=models)

    def _write(self, name: str) -> Model:
        card = self._service.card
        model = Model(
            id=name,
            created=card.created,
            max_model_len=card.max_model_len,
            weight_format=card.weight_format,
            num_parameters=card.num_parameters,
        )
        if name != card.id:
            model.parent = card.id
        return model


def _write_embedder(card: EmbedderCard) -> Model:
    return Model(
        id=card.id,
        created=card.created,
        max_model_len=card.max_tokens,
        weight_format=card.weight_format,
        num_parameters=card.num_parameters,
        dimensions=card.dimensions,
    )
