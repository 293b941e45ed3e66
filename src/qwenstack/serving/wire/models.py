"""OpenAI's list of models."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from qwenstack.core.protocols import EmbedderCard, ModelCard


class Model(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["qwenstack"]
    max_model_len: int
    """Prompt and answer together, or one text to embed, have at most this many tokens."""
    weight_format: str
    num_parameters: int
    parent: NotRequired[str]
    """Of a LoRA adapter: the model that it changes."""
    dimensions: NotRequired[int]
    """Of an embedding model: the numbers of a vector. It answers nothing, `/v1/embeddings` takes its name."""


class ModelList(TypedDict):
    """All models that are served."""

    object: Literal["list"]
    data: list[Model]


def write_adapter(name: str, card: ModelCard) -> Model:
    """Write a LoRA adapter as the model that it is to clients."""
    return {**write_model(card), "id": name, "parent": card.id}


def write_model(card: ModelCard) -> Model:
    """Write a model's card in OpenAI's words and a few of ours."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "qwenstack",
        "max_model_len": card.max_model_len,
        "weight_format": card.weight_format,
        "num_parameters": card.num_parameters,
    }


def write_embedder(card: EmbedderCard) -> Model:
    """Write an embedding model's card."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "qwenstack",
        "max_model_len": card.max_tokens,
        "weight_format": card.weight_format,
        "num_parameters": card.num_parameters,
        "dimensions": card.dimensions,
    }
