"""OpenAI's embeddings: what clients send and what they get."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import msgspec
from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.embedding import InputType, Vector
from qwenstack.serving.embedding_service import MAX_INPUTS, EmbeddingJob, Embeddings
from qwenstack.serving.service import DEFAULT_MODEL_NAME
from qwenstack.serving.wire.completions import TokenIds
from qwenstack.serving.wire.sampling import WireModel

EncodingFormat = Literal["float", "base64"]


class EmbeddingRequest(WireModel):
    """Texts to embed."""

    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    )
    """A text, a list of texts, or token ids in place of texts where the model takes them."""
    model: str = DEFAULT_MODEL_NAME
    """The id of the embedding model from `/v1/models`, or `default`."""
    encoding_format: EncodingFormat | None = None
    """`float` (where nothing is said) or `base64`: float32, little endian."""
    dimensions: int | None = Field(None, ge=1)
    """Numbers of a vector; fewer than all only where the model was trained for that."""
    user: str | None = None
    """Accepted and ignored."""
    input_type: Literal["query", "passage", "document"] | None = None
    """What the texts are: what searches, or what is found (`document` is another word for `passage`)."""
    truncate: bool | None = None
    """Leave out the end of texts that are too long, which are refused otherwise."""

    def to_job(self) -> EmbeddingJob:
        """Translate into the words of the service."""
        input_type: InputType | None = "passage" if self.input_type == "document" else self.input_type
        return EmbeddingJob(
            inputs=self._inputs(),
            input_type=input_type,
            dimensions=self.dimensions,
            truncate=self.truncate is True,
        )

    def _inputs(self) -> Sequence[str | Sequence[int]]:
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [cast("list[int]", self.input)]
        return cast("list[str] | list[list[int]]", self.input)


class Embedding(TypedDict):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    """Counted tokens, the model's own marks and prefixes included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def write_embeddings(made: Embeddings, encoding_format: EncodingFormat | None) -> EmbeddingList:
    """Write vectors as OpenAI does; so many take up to half a second, which is not the event loop's to spend."""
    write = _base64 if encoding_format == "base64" else write_vector
    data: list[Embedding] = [
        {"object": "embedding", "index": index, "embedding": write(vector)} for index, vector in enumerate(made.vectors)
    ]
    usage: EmbeddingUsage = {"prompt_tokens": made.num_tokens, "total_tokens": made.num_tokens}
    return {"object": "list", "data": data, "model": made.model, "usage": usage}


def write_vector(vector: Vector) -> list[float]:
    """Write the numbers of a vector as JSON at once, so that what holds many is not encoded in one go."""
    return cast("list[float]", msgspec.Raw(msgspec.json.encode(vector.tolist())))


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.tobytes()).decode("ascii")
