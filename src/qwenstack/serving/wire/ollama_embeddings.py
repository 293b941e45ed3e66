"""Ollama's embeddings: what clients send and what they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.serving.embedding_service import MAX_INPUTS, EmbeddingJob, Embeddings
from qwenstack.serving.wire.embeddings import write_vector
from qwenstack.serving.wire.ollama import Options
from qwenstack.serving.wire.sampling import WireModel


class EmbedFields(WireModel):
    """What both requests share."""

    model: str = Field(min_length=1)
    """The id of the embedding model, or `default`; with or without `:latest`."""
    options: Options | None = None
    """Accepted and ignored: a vector is not sampled."""
    keep_alive: float | str | None = None
    """Accepted and ignored: the model stays."""


class OllamaEmbedRequest(EmbedFields):
    """Texts to embed; without any the server says that the model is there."""

    input: str | Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True)] = ""
    """A text, or a list of texts."""
    truncate: bool | None = None
    """Leave out the end of texts that are too long; unlike Ollama's own server, this one does so only if asked."""
    dimensions: int | None = Field(None, ge=1)
    """Numbers of a vector; fewer than all only where the model was trained for that."""

    def to_job(self) -> EmbeddingJob:
        """Translate into the words of the service."""
        inputs: Sequence[str] = self.input if isinstance(self.input, list) else [self.input] if self.input else []
        return EmbeddingJob(inputs=inputs, dimensions=self.dimensions, truncate=self.truncate is True)


class OllamaEmbeddingsRequest(EmbedFields):
    """One text to embed, as Ollama took it first."""

    prompt: str = ""
    """The text; without it the server says that the model is there."""

    def to_job(self) -> EmbeddingJob:
        """Translate into the words of the service."""
        return EmbeddingJob(inputs=[self.prompt] if self.prompt else [])


class OllamaEmbedResponse(TypedDict):
    """The vectors, in the order of the texts."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    """Nanoseconds, as the other."""
    load_duration: int
    prompt_eval_count: int
    """Tokens of all texts."""


class OllamaEmbeddingsResponse(TypedDict):
    """The vector of the text; empty where there was none."""

    embedding: list[float]


def write_embed(made: Embeddings, duration_ns: int) -> OllamaEmbedResponse:
    """Write vectors as `/api/embed` does; as with OpenAI's, so many are not for the event loop."""
    return {
        "model": made.model,
        "embeddings": [write_vector(vector) for vector in made.vectors],
        "total_duration": duration_ns,
        "load_duration": 0,
        "prompt_eval_count": made.num_tokens,
    }


def write_one_embedding(made: Embeddings) -> OllamaEmbeddingsResponse:
    """Write a vector as `/api/embeddings` does."""
    return {"embedding": made.vectors[0].tolist() if made.vectors else []}
