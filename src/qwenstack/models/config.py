"""The shape of a decoder: one value for Qwen2, Qwen2.5, Qwen3, Qwen3-MoE and Llama, with Hugging Face's field names.

Families differ by flags (`qkv_bias`, `qk_norm`, `tie_word_embeddings`, `experts`), not by classes. What this decoder
does not compute (sliding windows, partial rotation, other activations) is refused here rather than computed wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qwenstack.core.errors import ConfigError, ModelFormatError
from qwenstack.models.metadata import MetadataFields
from qwenstack.models.rope import Llama3Scaling, RopeScaling, YarnScaling, yarn_attention_factor
from qwenstack.models.rope_metadata import rope_from_gguf, rope_from_hf

ModelType = Literal["qwen2", "qwen3", "qwen3_moe", "llama"]
_MODEL_TYPES: tuple[ModelType, ...] = ("qwen2", "qwen3", "qwen3_moe", "llama")
_GGUF_ARCHITECTURES: dict[str, ModelType] = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "llama": "llama",
}
_MAX_SIZE = 1 << 24
"""No dimension of a real model comes near; a hostile file must not make us multiply with larger ones."""
_MAX_LAYERS = 1024
_QWEN3_WRITTEN_LENGTH = 40_960
_QWEN3_TRAINED_LENGTH = 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """The mixture of experts that replaces the feed-forward network in sparse layers."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    """Whether the chosen experts' probabilities are divided by their sum; so in all released Qwen3-MoE models."""
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    """Layers that keep a dense feed-forward network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The sizes and flags of one decoder.

    Raises:
        ModelFormatError: sizes contradict each other or are beyond any real model.
    """

    model_type: ModelType
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    """Not `hidden_size / num_attention_heads`: five of the eight Qwen3 sizes differ."""
    vocab_size: int
    """Rows of the embedding; the tokenizer may use fewer."""
    max_position_embeddings: int
    """As the file says; `context_length` is what the model reads."""
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    """How the rotary embedding is stretched beyond what the model was first trained for."""
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool = False
    qk_norm: bool
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be."""
        sizes = {
            name: getattr(self, name)
            for name in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "vocab_size",
                "max_position_embeddings",
            )
        }
        if self.experts is not None:
            sizes["num_experts"] = self.experts.num_experts
            sizes["moe_intermediate_size"] = self.experts.moe_intermediate_size
        for name, size in sizes.items():
            limit = _MAX_LAYERS if name == "num_hidden_layers" else _MAX_SIZE
            if not 1 <= size <= limit:
                raise ModelFormatError(f"`{name}` is {size!r}; it must lie between 1 and {limit}.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelFormatError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value heads."
            )
        if self.head_dim % 2:
            raise ModelFormatError(f"`head_dim` is {self.head_dim}; rotary embedding needs an even one.")
        for name in ("rms_norm_eps", "rope_theta"):
            value: float = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ModelFormatError(f"`{name}` is {value!r}; it must be a positive number.")
        if isinstance(self.rope_scaling, YarnScaling) and self.rope_theta <= 1:
            raise ModelFormatError(f"`rope_theta` is {self.rope_theta!r}; YaRN needs one above 1.")
        if self.context_length > _MAX_SIZE:
            raise ModelFormatError(f"The context is stretched to {self.context_length}, more than {_MAX_SIZE}.")
        if self.experts is not None and not 1 <= self.experts.num_experts_per_tok <= self.experts.num_experts:
            raise ModelFormatError(
                f"{self.experts.num_experts_per_tok} of {self.experts.num_experts} experts per token is not a choice."
            )

    @property
    def context_length(self) -> int:
        """Positions that the model is made for: with YaRN its factor times the original length, as both are written."""
        if isinstance(self.rope_scaling, YarnScaling):
            return int(self.rope_scaling.factor * self.rope_scaling.original_max_position_embeddings)
        return self.max_position_embeddings

    @property
    def unstretched_length(self) -> int:
        """Positions that the model learnt without stretching, from which YaRN starts.

        Qwen3 writes 40,960 and was trained for 32,768: the rest is room for an answer.
        Source: Qwen3 technical report, arXiv:2505.09388, section 3.2; `docs/source/deployment/vllm.md` of Qwen3.
        """
        if isinstance(self.rope_scaling, YarnScaling | Llama3Scaling):
            return self.rope_scaling.original_max_position_embeddings
        if self.model_type in ("qwen3", "qwen3_moe") and self.max_position_embeddings == _QWEN3_WRITTEN_LENGTH:
            return _QWEN3_TRAINED_LENGTH
        return self.max_position_embeddings

    def stretched(self, yarn_factor: float) -> ModelConfig:
        """Return the same model with its context stretched by YaRN.

        Raises:
            ConfigError: the model's files ask for a scaling already, or the stretched context is beyond any real one.
        """
        if self.rope_scaling is not None:
            raise ConfigError(
                f"`yarn_factor` is {yarn_factor}, but this model's files stretch its context already, to "
                f"{self.context_length} positions. Leave `yarn_factor` out."
            )
        scaling = YarnScaling(
            factor=yarn_factor,
            original_max_position_embeddings=self.unstretched_length,
            attention_factor=yarn_attention_factor(yarn_factor),
        )
        return replace(self, rope_scaling=scaling)

    @property
    def gguf_architecture(self) -> str:
        """What GGUF files call the family."""
        return next(name for name, kind in _GGUF_ARCHITECTURES.items() if kind == self.model_type)

    @property
    def attention_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.head_dim**-0.5

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts instead of a dense feed-forward network."""
        if self.experts is None or layer in self.experts.mlp_only_layers:
            return False
        return (layer + 1) % self.experts.decoder_sparse_step == 0

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model; a tied head counts once."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size)
        attention += (self.q_size + 2 * self.kv_size) * self.qkv_bias + self.hidden_size * self.o_bias
        attention += 2 * self.head_dim * self.qk_norm
        total = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2) + self.hidden_size
        for layer in range(self.num_hidden_layers):
            total += attention + 2 * self.hidden_size
            if self.experts is not None and self.is_sparse(layer):
                per_expert = 3 * self.hidden_size * self.experts.moe_intermediate_size
                total += self.experts.num_experts * (per_expert + self.hidden_size)
            else:
                total += 3 * self.hidden_size * self.intermediate_size
        return total

    @classmethod
    def from_hf(cls, config: Mapping[str, object]) -> ModelConfig:
        """Read a Hugging Face `config.json`.

        Raises:
            ModelFormatError: a field is missing, of the wrong type, or asks for what this decoder does not compute.
        """
        fields = MetadataFields(config, "config.json")
        model_type = fields.text("model_type")
        if model_type not in _MODEL_TYPES:
            raise ModelFormatError(
                f"config.json says model_type {model_type!r}; this decoder knows {', '.join(_MODEL_TYPES)}."
            )
        _refuse_unknown_mathematics(fields)
        hidden_size = fields.integer("hidden_size")
        num_attention_heads = fields.integer("num_attention_heads")
        attention_bias = fields.flag("attention_bias", default=False)
        max_position_embeddings = fields.integer("max_position_embeddings")
        rope_theta, rope_scaling = rope_from_hf(fields, max_position_embeddings)
        return cls(
            model_type=model_type,
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers"),
            num_attention_heads=num_attention_heads,
            num_key_value_heads=fields.integer("num_key_value_heads", default=num_attention_heads),
            head_dim=fields.integer("head_dim", default=hidden_size // max(num_attention_heads, 1)),
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=max_position_embeddings,
            rms_norm_eps=fields.number("rms_norm_eps"),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
            qkv_bias=attention_bias or model_type == "qwen2",
            o_bias=attention_bias and model_type != "qwen2",
            qk_norm=model_type in ("qwen3", "qwen3_moe"),
            experts=_experts_from_hf(fields) if model_type == "qwen3_moe" else None,
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], tensor_shapes: Mapping[str, Sequence[int]]) -> ModelConfig:
        """Read GGUF metadata; the tensors say what the metadata leaves open (vocabulary rows, biases, a tied head).

        Raises:
            ModelFormatError: as for `from_hf`.
        """
        fields = MetadataFields(metadata, "the GGUF metadata")
        architecture = fields.text("general.architecture")
        if architecture not in _GGUF_ARCHITECTURES:
            raise ModelFormatError(
                f"The file holds a model of architecture {architecture!r}; this decoder knows "
                f"{', '.join(_GGUF_ARCHITECTURES)}."
            )
        model_type = _GGUF_ARCHITECTURES[architecture]
        _refuse_unknown_gguf_mathematics(fields, architecture, tensor_shapes)
        if "token_embd.weight" not in tensor_shapes:
            raise ModelFormatError("The file has no tensor `token_embd.weight`.")
        hidden_size = fields.integer(f"{architecture}.embedding_length")
        num_attention_heads = fields.integer(f"{architecture}.attention.head_count")
        head_dim = fields.integer(
            f"{architecture}.attention.key_length", default=hidden_size // max(num_attention_heads, 1)
        )
        if fields.integer(f"{architecture}.rope.dimension_count", default=head_dim) != head_dim:
            raise ModelFormatError("The model turns a part of each head only, which is not computed here.")
        context_length = fields.integer(f"{architecture}.context_length")
        rope_theta, rope_scaling = rope_from_gguf(fields, architecture, context_length)
        experts = _experts_from_gguf(fields, architecture) if model_type == "qwen3_moe" else None
        return cls(
            model_type=model_type,
            hidden_size=hidden_size,
            intermediate_size=fields.integer(f"{architecture}.feed_forward_length"),
            num_hidden_layers=fields.integer(f"{architecture}.block_count"),
            num_attention_heads=num_attention_heads,
            num_key_value_heads=fields.integer(f"{architecture}.attention.head_count_kv", default=num_attention_heads),
            head_dim=head_dim,
            vocab_size=tensor_shapes["token_embd.weight"][0],
            max_position_embeddings=context_length,
            rms_norm_eps=fields.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_word_embeddings="output.weight" not in tensor_shapes,
            qkv_bias="blk.0.attn_q.bias" in tensor_shapes,
            o_bias="blk.0.attn_output.bias" in tensor_shapes,
            qk_norm="blk.0.attn_q_norm.weight" in tensor_shapes,
            experts=experts,
        )


def _refuse_unknown_mathematics(fields: MetadataFields) -> None:
    activation = fields.values.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelFormatError(f"`hidden_act` is {activation!r}; this decoder computes silu.")
    if fields.flag("mlp_bias", default=False):
        raise ModelFormatError("`mlp_bias` is true; this decoder has no bias in its feed-forward network.")
    kinds = fields.items("layer_types")
    if fields.flag("use_sliding_window", default=False) or any(kind != "full_attention" for kind in kinds):
        raise ModelFormatError("The model uses sliding-window attention, which is not computed here.")


def _refuse_unknown_gguf_mathematics(
    fields: MetadataFields, architecture: str, tensor_shapes: Mapping[str, Sequence[int]]
) -> None:
    if "rope_freqs.weight" in tensor_shapes:
        raise ModelFormatError("The file scales each rotary frequency by a tensor, which is not computed here.")
    if fields.values.get(f"{architecture}.attention.sliding_window"):
        raise ModelFormatError("The model uses sliding-window attention, which is not computed here.")
    if fields.values.get(f"{architecture}.expert_shared_count"):
        raise ModelFormatError("The model has shared experts, which are not computed here.")


def _experts_from_hf(fields: MetadataFields) -> ExpertsConfig:
    mlp_only = fields.items("mlp_only_layers")
    return ExpertsConfig(
        # transformers 5 writes `num_local_experts`, the released checkpoints say `num_experts`.
        num_experts=fields.integer("num_local_experts" if "num_local_experts" in fields.values else "num_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        norm_topk_prob=fields.flag("norm_topk_prob", default=False),
        decoder_sparse_step=max(fields.integer("decoder_sparse_step", default=1), 1),
        mlp_only_layers=tuple(layer for layer in mlp_only if isinstance(layer, int)),
    )


def _experts_from_gguf(fields: MetadataFields, architecture: str) -> ExpertsConfig:
    return ExpertsConfig(
        num_experts=fields.integer(f"{architecture}.expert_count"),
        num_experts_per_tok=fields.integer(f"{architecture}.expert_used_count"),
        moe_intermediate_size=fields.integer(f"{architecture}.expert_feed_forward_length"),
        norm_topk_prob=True,
    )
