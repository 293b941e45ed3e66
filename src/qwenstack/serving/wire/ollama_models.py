"""Ollama's descriptions of models: what is served, what is in memory, and what one of them is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from qwenstack.core.protocols import EmbedderCard, ModelCard, ModelShape
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.serving.service import LATEST
from qwenstack.serving.wire.ollama import write_time

Capability: TypeAlias = Literal["completion", "tools", "thinking", "insert", "embedding"]

_FOR_EVER_S = 2**63 / 1e9
"""How long Ollama says that a model stays which it never unloads."""
_BILLION = 1_000_000_000


class Details(TypedDict):
    """What kind of model it is."""

    parent_model: str
    """Of a LoRA adapter: the model that it changes."""
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ListedModel(TypedDict):
    """A model that is served."""

    name: str
    model: str
    modified_at: str
    """When it was loaded."""
    size: int
    """Bytes of its weights."""
    details: Details


class TagsResponse(TypedDict):
    """What is served."""

    models: list[ListedModel]


class RunningModel(TypedDict):
    """A model that is in memory."""

    name: str
    model: str
    size: int
    """Bytes of its weights."""
    size_vram: int
    """0: it runs on processors."""
    details: Details
    expires_at: str
    """In centuries: it stays."""
    context_length: int


class RunningResponse(TypedDict):
    """What is in memory."""

    models: list[RunningModel]


class ShowResponse(TypedDict):
    """What a model is and can."""

    modelfile: str
    parameters: str
    """How it samples where a request says nothing."""
    template: NotRequired[str]
    """Jinja, not Go as Ollama's own."""
    details: Details
    model_info: dict[str, str | int]
    """By the names of GGUF's metadata; the context is the one that is served."""
    capabilities: list[Capability]
    modified_at: str


def write_listed(name: str, card: ModelCard | EmbedderCard) -> ListedModel:
    """List a model under this name."""
    return {
        "name": _with_tag(name),
        "model": _with_tag(name),
        "modified_at": write_time(card.created),
        "size": _size_of(card.shape),
        "details": _write_details(name, card),
    }


def write_running(name: str, card: ModelCard | EmbedderCard) -> RunningModel:
    """List a model that is in memory."""
    return {
        "name": _with_tag(name),
        "model": _with_tag(name),
        "size": _size_of(card.shape),
        "size_vram": 0,
        "details": _write_details(name, card),
        "expires_at": write_time(card.created + _FOR_EVER_S),
        "context_length": _context_of(card),
    }


def write_shown(name: str, card: ModelCard | EmbedderCard, defaults: SamplingParams) -> ShowResponse:
    """Describe a model, which samples by `defaults` where it writes."""
    is_embedder = isinstance(card, EmbedderCard)
    parameters: dict[str, float | int] = {"num_ctx": _context_of(card)}
    if not is_embedder:
        parameters.update(_write_sampling(defaults))
    shown: ShowResponse = {
        "modelfile": "\n".join([f"FROM {name}", *(f"PARAMETER {key} {value}" for key, value in parameters.items())]),
        "parameters": "\n".join(f"{key:<30} {value}" for key, value in parameters.items()),
        "details": _write_details(name, card),
        "model_info": _write_info(card),
        "capabilities": ["embedding"] if is_embedder else _capabilities_of(card),
        "modified_at": write_time(card.created),
    }
    if not is_embedder and card.chat_template is not None:
        shown["template"] = card.chat_template
    return shown


def _with_tag(name: str) -> str:
    """Every name that Ollama lists has a tag; Open WebUI adds it to one without, and then does not find it listed."""
    return name if ":" in name else name + LATEST


def _write_details(name: str, card: ModelCard | EmbedderCard) -> Details:
    architecture = "" if card.shape is None else card.shape.architecture
    return {
        "parent_model": "" if name == card.id else card.id,
        "format": "" if card.shape is None else card.shape.file_format,
        "family": architecture,
        "families": [architecture] if architecture else [],
        "parameter_size": _write_count(card.num_parameters),
        "quantization_level": card.weight_format,
    }


def _write_count(num_parameters: int) -> str:
    if num_parameters >= _BILLION:
        return f"{num_parameters / _BILLION:.1f}B"
    return f"{num_parameters / 1e6:.0f}M"


def _write_sampling(params: SamplingParams) -> Mapping[str, float | int]:
    return {
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repeat_penalty": params.repetition_penalty,
    }


def _write_info(card: ModelCard | EmbedderCard) -> dict[str, str | int]:
    info: dict[str, str | int] = {"general.basename": card.id, "general.parameter_count": card.num_parameters}
    shape = card.shape
    if shape is None:
        return info
    sizes = {
        "context_length": _context_of(card),
        "embedding_length": shape.hidden_size,
        "block_count": shape.num_hidden_layers,
        "feed_forward_length": shape.intermediate_size,
        "attention.head_count": shape.num_attention_heads,
        "attention.head_count_kv": shape.num_key_value_heads,
        "attention.key_length": shape.head_dim,
        "expert_count": shape.num_experts,
        "expert_used_count": shape.num_experts_per_tok,
    }
    info["general.architecture"] = shape.architecture
    return info | {f"{shape.architecture}.{name}": size for name, size in sizes.items() if size is not None}


def _capabilities_of(card: ModelCard) -> list[Capability]:
    more: Mapping[Capability, bool] = {"tools": card.takes_tools, "thinking": card.thinks, "insert": card.fills_gaps}
    return ["completion", *(name for name, has in more.items() if has)]


def _context_of(card: ModelCard | EmbedderCard) -> int:
    return card.max_tokens if isinstance(card, EmbedderCard) else card.max_model_len


def _size_of(shape: ModelShape | None) -> int:
    return 0 if shape is None else shape.size_bytes
