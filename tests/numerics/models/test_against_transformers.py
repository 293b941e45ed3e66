"""Random checkpoints of every family, saved by transformers: our logits are its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import our_logits, reference_logits, save_random
from support.one_by_one import OneByOne
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from qwenstack.kernels import Kernels, load_kernels
from qwenstack.models import ModelConfig
from qwenstack.models.rope import Rotary, YarnScaling

LOGIT_TOLERANCE = 1e-4
"""Largest error as a share of the logits' deviation: float32 rounding through a few layers stays under 2e-5."""


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 24}
"""Made for 24 positions and read up to 75, so that fast, mixed and slow pairs all matter."""


def stretched(scaling: dict[str, Any]) -> dict[str, Any]:
    return {"max_position_embeddings": 96, "rope_parameters": scaling}


def shape(
    width: int, heads: int, kv_heads: int, head_dim: int | None, ffn: int, layers: int = 3, vocabulary: int = 331
) -> dict[str, Any]:
    sizes = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return sizes if head_dim is None else sizes | {"head_dim": head_dim}


MODELS: dict[str, PretrainedConfig] = {
    "qwen2-groups-1": Qwen2Config(**shape(48, 3, 3, None, 70)),
    "qwen2-groups-7": Qwen2Config(**shape(70, 7, 1, None, 93), tie_word_embeddings=True),
    "qwen3-tied-groups-2": Qwen3Config(**shape(52, 6, 3, 10, 77), tie_word_embeddings=True),
    "qwen3-untied-groups-4": Qwen3Config(**shape(61, 8, 2, 22, 119)),
    "qwen3-untied-groups-8": Qwen3Config(**shape(96, 8, 1, 64, 131), attention_bias=True),
    "qwen3-groups-5": Qwen3Config(**shape(33, 5, 1, 6, 17)),
    "qwen3-groups-3-head-128": Qwen3Config(**shape(64, 6, 2, 128, 80)),
    "qwen3-moe": Qwen3MoeConfig(
        **shape(54, 6, 2, 18, 64), num_experts=9, num_experts_per_tok=3, moe_intermediate_size=27, norm_topk_prob=True
    ),
    "qwen3-moe-16-2-plain-weights": Qwen3MoeConfig(
        **shape(40, 4, 2, 12, 50), num_experts=16, num_experts_per_tok=2, moe_intermediate_size=21, norm_topk_prob=False
    ),
    "qwen3-moe-some-dense-layers": Qwen3MoeConfig(
        **shape(40, 4, 2, 12, 50, layers=4),
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=21,
        norm_topk_prob=True,
        mlp_only_layers=[2],
        decoder_sparse_step=2,
    ),
    "qwen2-yarn": Qwen2Config(**shape(64, 4, 2, None, 70) | stretched(YARN)),
    "qwen3-yarn": Qwen3Config(**shape(48, 4, 2, 32, 70) | stretched(YARN)),
    "qwen3-yarn-mscale-untruncated": Qwen3Config(
        **shape(48, 4, 2, 32, 70) | stretched(YARN | {"mscale": 1.3, "mscale_all_dim": 0.7, "truncate": False})
    ),
    "llama-linear": LlamaConfig(
        **shape(64, 4, 2, 16, 70) | stretched({"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0})
    ),
    "llama-3": LlamaConfig(
        **shape(64, 4, 2, 16, 70)
        | stretched(YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0})
    ),
    "llama-groups-6": LlamaConfig(**shape(84, 6, 1, None, 111), rms_norm_eps=1e-5),
    "llama-tied": LlamaConfig(**shape(64, 4, 4, 16, 100), tie_word_embeddings=True),
}


@pytest.fixture(scope="module", params=["reference", "auto"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load_kernels(2, request.param)


def random_ids(size: int = 75) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 331, size)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / theirs.std())


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, kernels: Kernels, tmp_path: Path) -> None:
    folder = save_random(tmp_path, MODELS[name])
    theirs = reference_logits(folder, random_ids())
    assert theirs.std() > 0.1
    assert relative_error(our_logits(folder, random_ids(), kernels), theirs) <= LOGIT_TOLERANCE


class WithoutScale(OneByOne):
    """Kernels whose attention forgets 1/sqrt(head_dim)."""

    def attend(self, *args: Any, **options: Any) -> None:
        self.kernels.attend(*args, **options | {"scale": 1.0})


def without(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    return lambda config: dataclasses.replace(config, **changes)


def without_renormalisation(config: ModelConfig) -> ModelConfig:
    assert config.experts is not None
    return dataclasses.replace(config, experts=dataclasses.replace(config.experts, norm_topk_prob=False))


def with_yarn(**changes: float) -> Callable[[ModelConfig], ModelConfig]:
    def change(config: ModelConfig) -> ModelConfig:
        assert isinstance(config.rope_scaling, YarnScaling)
        return dataclasses.replace(config, rope_scaling=dataclasses.replace(config.rope_scaling, **changes))

    return change


@pytest.mark.parametrize(
    ("name", "mutation"),
    [
        ("qwen2-groups-7", "bias"),
        ("qwen3-untied-groups-8", "output bias"),
        ("qwen3-untied-groups-4", "qk-norm"),
        ("qwen3-untied-groups-4", "scale"),
        ("qwen3-untied-groups-4", "rope"),
        ("llama-tied", "scale"),
        ("llama-tied", "rope"),
        ("qwen3-moe", "renormalisation"),
        ("qwen2-yarn", "scaling"),
        ("qwen3-yarn", "scaling"),
        ("qwen3-yarn", "attention factor"),
        ("qwen3-yarn", "written factor"),
        ("llama-linear", "scaling"),
        ("llama-3", "scaling"),
    ],
)
def test_a_forgotten_part_is_noticed(name: str, mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above has teeth: leaving one thing out exceeds its tolerance many times over."""
    folder = save_random(tmp_path, MODELS[name])
    kernels: Any = load_kernels(2, "auto")
    change: Callable[[ModelConfig], ModelConfig] = without()
    match mutation:
        case "bias":
            change = without(qkv_bias=False)
        case "output bias":
            change = without(o_bias=False)
        case "qk-norm":
            change = without(qk_norm=False)
        case "scale":
            kernels = WithoutScale(kernels)
        case "rope":
            turned_by = Rotary.at
            monkeypatch.setattr(Rotary, "at", lambda rotary, positions: turned_by(rotary, positions * 0))
        case "scaling":
            change = without(rope_scaling=None)
        case "attention factor":
            change = with_yarn(attention_factor=1.0)
        case "written factor":
            change = with_yarn(factor=2.0)
        case _:
            change = without_renormalisation
    mutated = our_logits(folder, random_ids(), kernels, change=change)
    assert relative_error(mutated, reference_logits(folder, random_ids())) > 100 * LOGIT_TOLERANCE
