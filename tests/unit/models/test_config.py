"""Configurations: the published sizes, and refusals of what would be computed wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from qwenstack.core.errors import ModelFormatError
from qwenstack.models import ModelConfig

QWEN3 = {
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "hidden_act": "silu",
}
MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


def sized(layers: int, width: int, heads: int, kv_heads: int, ffn: int, *, tied: bool) -> dict[str, Any]:
    return QWEN3 | {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "tie_word_embeddings": tied,
    }


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (QWEN3, 596_049_920),
        (sized(28, 2048, 16, 8, 6144, tied=True), 1_720_574_976),
        (sized(36, 2560, 32, 8, 9728, tied=True), 4_022_468_096),
        (sized(36, 4096, 32, 8, 12_288, tied=False), 8_190_735_360),
        (sized(40, 5120, 40, 8, 17_408, tied=False), 14_768_307_200),
        (sized(64, 5120, 64, 8, 25_600, tied=False), 32_762_123_264),
        (MOE, 30_532_122_624),
    ],
    ids=["0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B"],
)
def test_the_published_sizes_have_their_parameters(config: dict[str, Any], parameters: int) -> None:
    assert ModelConfig.from_hf(config).num_parameters == parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True}, "sliding"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
        ({"layer_types": 7}, "list"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": [1]}, "object"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"head_dim": 127}, "even"),
        ({"num_key_value_heads": 3}, "share"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": True}, "whole number"),
        ({"num_hidden_layers": 1 << 24}, "num_hidden_layers"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "too large"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"vocab_size": None}, "missing"),
    ],
)
def test_what_cannot_be_or_is_not_computed_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        ModelConfig.from_hf(QWEN3 | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 1 << 60}, "num_experts"),
        ({"num_experts_per_tok": 200}, "200 of 128"),
        ({"moe_intermediate_size": -1}, "moe_intermediate_size"),
        ({"mlp_only_layers": 5}, "list"),
    ],
)
def test_experts_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        ModelConfig.from_hf(MOE | change)


GGUF = {
    "general.architecture": "qwen2",
    "qwen2.embedding_length": 896,
    "qwen2.attention.head_count": 14,
    "qwen2.attention.head_count_kv": 2,
    "qwen2.feed_forward_length": 4864,
    "qwen2.block_count": 24,
    "qwen2.context_length": 32_768,
    "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen2.rope.freq_base": 1_000_000.0,
}
SHAPES = {"token_embd.weight": (151_936, 896), "blk.0.attn_q.bias": (896,)}


def test_gguf_tensors_say_what_the_metadata_leave_open() -> None:
    config = ModelConfig.from_gguf(GGUF, SHAPES)
    assert (config.qkv_bias, config.qk_norm, config.tie_word_embeddings) == (True, False, True)
    assert config.num_parameters == 494_032_768
    assert not ModelConfig.from_gguf(GGUF, SHAPES | {"output.weight": (151_936, 896)}).tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gpt2"}, "gpt2"),
        ({"qwen2.rope.scaling.type": "yarn"}, "yarn"),
        ({"qwen2.rope.scale_linear": 4.0}, "scaled"),
        ({"qwen2.rope.dimension_count": 32}, "part of each head"),
        ({"qwen2.attention.sliding_window": 4096}, "sliding"),
        ({"qwen2.expert_shared_count": 1}, "shared"),
        ({"qwen2.block_count": "many"}, "whole number"),
    ],
)
def test_gguf_metadata_that_ask_for_other_mathematics_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        ModelConfig.from_gguf(GGUF | change, SHAPES)
