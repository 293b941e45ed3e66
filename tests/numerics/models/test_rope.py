"""Rotary frequencies and attention factors: ours are those of transformers, for every way of stretching."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from qwenstack.models import ModelConfig
from qwenstack.models.rope import Rotary

FREQUENCY_TOLERANCE = 3e-7
"""Relative: the last bit of a float32 power may differ between numpy and torch, and mixing may double it."""

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "yarn": YARN,
    "yarn-odd-factor": YARN | {"factor": 2.7},
    "yarn-factor-1": YARN | {"factor": 1.0},
    "yarn-tiny-original": YARN | {"original_max_position_embeddings": 16},
    "yarn-betas": YARN | {"beta_fast": 24.0, "beta_slow": 2.0},
    "yarn-untruncated": YARN | {"truncate": False},
    "yarn-attention-factor": YARN | {"attention_factor": 0.9},
    "yarn-mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.707},
    "yarn-one-mscale": YARN | {"mscale": 1.0},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
    "llama3-short": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 64},
}


def configs(scaling: dict[str, Any], head_dim: int, theta: float) -> tuple[Qwen3Config, ModelConfig]:
    theirs = Qwen3Config(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=40_960,
        rope_parameters=scaling | {"rope_theta": theta},
    )
    return theirs, ModelConfig.from_hf(theirs.to_dict())


@pytest.mark.parametrize(("head_dim", "theta"), [(128, 1_000_000.0), (64, 10_000.0), (10, 500.0)])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_attention_factor_are_those_of_transformers(name: str, head_dim: int, theta: float) -> None:
    theirs, config = configs(SCALINGS[name], head_dim, theta)
    ours = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
    if name == "plain":
        inv_freq, attention_factor = Qwen3RotaryEmbedding.compute_default_rope_parameters(theirs)
    else:
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[SCALINGS[name]["rope_type"]](theirs, torch.device("cpu"))
    assert ours.frequencies.dtype == np.float32
    np.testing.assert_allclose(ours.frequencies, inv_freq.numpy(), rtol=FREQUENCY_TOLERANCE)
    assert ours.attention_factor == attention_factor


@pytest.mark.parametrize("name", ["yarn", "llama3", "linear"])
def test_cosines_and_sines_are_those_of_transformers_up_to_the_last_position(name: str) -> None:
    theirs, config = configs(SCALINGS[name], 128, 1_000_000.0)
    positions = np.array([0, 1, 4095, 32_767, 32_768, 131_071])
    ours = Rotary(config.head_dim, config.rope_theta, config.rope_scaling).at(positions)
    reference = Qwen3RotaryEmbedding(theirs)(torch.zeros(1), torch.from_numpy(positions)[None])
    for mine, other in zip(ours, reference, strict=True):
        # An angle of 131,071 radians has steps of 1/128 in float32: where the last bit of the frequency differs, so do
        # cosine and sine, by that much.
        np.testing.assert_allclose(mine, other[0, :, :64].numpy(), atol=131_071 * 2**-23)


def test_the_written_factor_counts_and_not_the_ratio_of_two_lengths() -> None:
    """`max_position_embeddings` is 40,960 for a model stretched from 32,768: the ratio would say 1.25."""
    _, config = configs(YARN, 128, 1_000_000.0)
    _, ratio = configs(YARN | {"factor": 1.25}, 128, 1_000_000.0)
    written = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
    other = Rotary(ratio.head_dim, ratio.rope_theta, ratio.rope_scaling)
    plain = Rotary(config.head_dim, config.rope_theta)
    assert written.frequencies[-1] == pytest.approx(plain.frequencies[-1] / 4)
    assert other.frequencies[-1] == pytest.approx(plain.frequencies[-1] / 1.25)
    assert written.frequencies[0] == plain.frequencies[0]
