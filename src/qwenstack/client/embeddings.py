"""Vectors of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from qwenstack.client.call import Call, post
from qwenstack.client.endpoint import Endpoint, Group
from qwenstack.client.transport import AsyncTransport, Transport
from qwenstack.client.types import Usage

TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)


class Embedding(msgspec.Struct, kw_only=True):
    """The vector of one input."""

    index: int
    embedding: list[float]


class Embeddings(msgspec.Struct, kw_only=True):
    """The vectors, in the order of the inputs."""

    data: list[Embedding]
    model: str = ""
    usage: Usage | None = None

    @property
    def vectors(self) -> list[list[float]]:
        """The numbers alone."""
        return [each.embedding for each in self.data]


def describe_create(
    input: str | Sequence[str],  # noqa: A002 - OpenAI's name
    *,
    model: str | None = None,
    input_type: Literal["query", "passage"] | None = None,
    dimensions: int | None = None,
    truncate: bool | None = None,
) -> Call[Embeddings]:
    """Embed a text or several: what searches (`query`) or what is found (`passage`)."""
    body = {
        "input": input,
        "model": model,
        "input_type": input_type,
        "dimensions": dimensions,
        "truncate": truncate,
    }
    return post("/v1/embeddings", Embeddings, body)


class EmbeddingCalls(Group[TransportT]):
    """Vectors of texts."""

    create = Endpoint(describe_create)
