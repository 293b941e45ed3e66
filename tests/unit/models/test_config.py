"""Configurations: the published sizes, and refusals of what would be computed wrongly."""

from __future__ import annotations

from typing import Any

import pytest
from gguf.constants import Keys

from qwenstack.core.errors import ConfigError, ModelFormatError
from qwenstack.models import ModelConfig
from qwenstack.models.rope import LinearScaling, YarnScaling

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
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor.* missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "at least 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("inf")}}, "at least 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e6}}, "stretched to"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 1.0}, "above 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 32}}, "smaller"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": -1.0}}, "attention_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}}, "original"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": [1]}, "object"),
        ({"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_type": "yarn"}}, "differ"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "layer to layer"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part of each head"),
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
YARN_GGUF = {
    Keys.Rope.SCALING_TYPE.format(arch="qwen2"): "yarn",
    Keys.Rope.SCALING_FACTOR.format(arch="qwen2"): 2.0,
    Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch="qwen2"): 16_384,
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
        ({"qwen2.rope.scaling.type": "longrope"}, "longrope"),
        (YARN_GGUF | {"qwen2.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        (YARN_GGUF | {"qwen2.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ({"qwen2.rope.dimension_count": 32}, "part of each head"),
        ({"qwen2.attention.sliding_window": 4096}, "sliding"),
        ({"qwen2.expert_shared_count": 1}, "shared"),
        ({"qwen2.block_count": "many"}, "whole number"),
    ],
)
def test_gguf_metadata_that_ask_for_other_mathematics_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        ModelConfig.from_gguf(GGUF | change, SHAPES)


def test_gguf_tensors_that_scale_each_frequency_are_refused() -> None:
    with pytest.raises(ModelFormatError, match="each rotary frequency"):
        ModelConfig.from_gguf(GGUF, SHAPES | {"rope_freqs.weight": (32,)})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_scaling": YARN},
        {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32_768}},
        {"rope_parameters": YARN | {"rope_theta": 1_000_000}, "rope_theta": None},
        {"rope_parameters": YARN, "rope_scaling": YARN},
    ],
    ids=["old", "oldest", "new", "both"],
)
def test_every_spelling_of_yarn_is_read_alike_and_the_written_factor_counts(spelling: dict[str, Any]) -> None:
    config = ModelConfig.from_hf(QWEN3 | spelling)
    assert isinstance(config.rope_scaling, YarnScaling)
    assert config.rope_scaling.factor == 4.0  # not 40,960 / 32,768
    assert config.rope_scaling.attention_factor == pytest.approx(1.1386, abs=1e-4)
    assert (config.rope_theta, config.context_length) == (1_000_000, 131_072)


def test_gguf_yarn_is_read_under_the_names_of_the_gguf_package() -> None:
    config = ModelConfig.from_gguf(GGUF | YARN_GGUF, SHAPES)
    assert isinstance(config.rope_scaling, YarnScaling)
    assert config.rope_scaling.factor == 2.0
    assert config.rope_scaling.attention_factor == pytest.approx(1.0693, abs=1e-4)
    assert config.context_length == 32_768
    sharper = GGUF | YARN_GGUF | {Keys.Rope.SCALING_ATTN_FACTOR.format(arch="qwen2"): 1.5}
    scaling = ModelConfig.from_gguf(sharper, SHAPES).rope_scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.attention_factor == pytest.approx(1.5 * config.rope_scaling.attention_factor)


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ({"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0}, 4.0),
        ({"qwen2.rope.scaling.factor": 4.0}, 4.0),
        ({"qwen2.rope.scale_linear": 4.0}, 4.0),
        ({"qwen2.rope.scaling.type": "none", "qwen2.rope.scaling.factor": 4.0}, None),
        ({"qwen2.rope.scaling.type": "linear"}, None),
        ({}, None),
    ],
)
def test_a_gguf_factor_without_a_type_is_linear(change: dict[str, Any], factor: float | None) -> None:
    scaling = ModelConfig.from_gguf(GGUF | change, SHAPES).rope_scaling
    assert scaling == (None if factor is None else LinearScaling(factor=factor))


def test_a_user_stretches_from_the_length_that_the_model_was_trained_for() -> None:
    qwen3 = ModelConfig.from_hf(QWEN3).stretched(4.0)
    assert qwen3 == ModelConfig.from_hf(QWEN3 | {"rope_scaling": YARN})
    qwen2 = ModelConfig.from_gguf(GGUF, SHAPES).stretched(2.0)
    assert qwen2.context_length == 65_536
    native = ModelConfig.from_hf(QWEN3 | {"max_position_embeddings": 262_144})
    assert native.unstretched_length == 262_144


def test_a_model_that_is_stretched_already_is_not_stretched_again() -> None:
    with pytest.raises(ConfigError, match="131072"):
        ModelConfig.from_hf(QWEN3 | {"rope_scaling": YARN}).stretched(2.0)
