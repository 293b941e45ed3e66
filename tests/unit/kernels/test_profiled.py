"""Kernels with a stopwatch compute the same, and count what was asked of them under the right name."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import ReferenceKernels
from qwenstack.kernels.profiled import ProfiledKernels


def stored(name: str, rows: int, width: int = 32) -> Any:
    values = np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)
    return SimpleNamespace(name=name, weight_type=WeightType.F32, shape=(rows, width), data=values.view(np.uint8))


@pytest.fixture
def profiled() -> ProfiledKernels:
    """Kernels whose clock goes on by a second whenever it is looked at."""
    ticks = itertools.count()
    return ProfiledKernels(ReferenceKernels(8), clock=lambda: float(next(ticks)))


def test_the_result_is_that_of_the_kernels_inside(profiled: ProfiledKernels) -> None:
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    results = []
    for kernels in (ReferenceKernels(8), profiled.as_kernels()):
        out = np.empty((3, 8), np.float32)
        kernels.linear(x, kernels.pack([stored("blk.0.ffn_down.weight", 8)]), out, norm_weight=x[0], eps=1e-6)
        results.append(out)
    np.testing.assert_array_equal(*results)
    assert profiled.name == ReferenceKernels(8).name


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (["blk.3.attn_q.weight", "blk.3.attn_k.weight", "blk.3.attn_v.weight"], "qkv"),
        ([f"model.layers.3.self_attn.{part}_proj.weight" for part in "qkv"], "qkv"),
        (["model.layers.0.mlp.experts.7.gate_proj.weight", "model.layers.0.mlp.experts.7.up_proj.weight"], "gate/up"),
        (["model.layers.0.mlp.gate.weight"], "router"),
        (["token_embd.weight"], "head"),
        (["model.embed_tokens.weight"], "head"),
        (["lm_head.weight"], "head"),
        (["blk.0.attn_output.weight"], "output"),
        (["output.weight"], "head"),
        (["blk.0.something_new.weight"], "something_new"),
    ],
)
def test_a_product_is_called_by_its_weights(profiled: ProfiledKernels, names: list[str], place: str) -> None:
    kernels = profiled.as_kernels()
    packed = kernels.pack([stored(name, 8) for name in names])
    x = np.ones((1, 32), np.float32)
    kernels.linear(x, packed, np.empty((1, packed.out_features), np.float32))
    assert list(profiled.take_tallies()) == [f"linear {place}"]


def test_calls_seconds_and_bytes_add_up_until_they_are_taken(profiled: ProfiledKernels) -> None:
    kernels = profiled.as_kernels()
    packed = [kernels.pack([stored(f"blk.{layer}.ffn_down.weight", 8)]) for layer in range(3)]
    x = np.ones((1, 32), np.float32)
    for weights in packed:
        kernels.linear(x, weights, np.empty((1, 8), np.float32))
    kernels.rms_norm(x, x[0], 1e-6, np.empty_like(x))
    tallies = profiled.take_tallies()
    down, norm = tallies["linear down"], tallies["rms_norm"]
    assert (down.num_calls, down.seconds, down.bytes_read) == (3, 3.0, sum(weights.num_bytes for weights in packed))
    assert (norm.num_calls, norm.bytes_read) == (1, 0)
    assert profiled.take_tallies() == {}


def test_attention_reads_the_keys_and_values_of_every_position(profiled: ProfiledKernels) -> None:
    num_kv_heads, head_dim, block_size = 2, 16, 8
    cache = np.zeros((4, num_kv_heads, block_size, head_dim), np.float16)
    profiled.as_kernels().attend(
        np.zeros((2, (2 + 2 * num_kv_heads) * head_dim), np.float32),
        num_heads=2,
        num_kv_heads=num_kv_heads,
        k_cache=cache,
        v_cache=cache,
        query_start=np.array([0, 1, 2], np.int32),
        kv_len=np.array([9, 5], np.int32),
        block_table=np.array([[0, 1], [2, 0]], np.int32),
        scale=1.0,
        out_TX=np.empty((2, 2 * head_dim), np.float32),
    )
    assert profiled.take_tallies()["attend"].bytes_read == (9 + 5) * 2 * num_kv_heads * head_dim * 2


def test_an_operation_that_fails_fails_as_without_the_stopwatch(profiled: ProfiledKernels) -> None:
    kernels = profiled.as_kernels()
    packed = kernels.pack([stored("blk.0.ffn_down.weight", 8)])
    with pytest.raises(ValueError, match="linear"):
        kernels.linear(np.ones((1, 31), np.float32), packed, np.empty((1, 8), np.float32))
    with pytest.raises(AttributeError):
        kernels.unheard_of  # noqa: B018 # type: ignore[attr-defined]


def test_the_view_at_another_precision_is_timed_as_well(profiled: ProfiledKernels) -> None:
    kernels = profiled.as_kernels()
    packed = kernels.pack([stored("blk.0.ffn_down.weight", 4)])
    view = kernels.with_activation_bits(16)
    view.linear(np.ones((1, 32), np.float32), packed, np.empty((1, 4), np.float32))
    assert set(profiled.take_tallies()) == {"linear down"}


def test_of_experts_only_those_that_were_chosen_are_read(profiled: ProfiledKernels) -> None:
    kernels = profiled.as_kernels()
    experts = [
        (
            kernels.pack([stored("blk.0.ffn_gate_exps.weight", 32), stored("blk.0.ffn_up_exps.weight", 32)]),
            kernels.pack([stored("blk.0.ffn_down_exps.weight", 32)]),
        )
        for _ in range(4)
    ]
    profiled.take_tallies()
    out = np.zeros((2, 32), np.float32)
    kernels.add_experts(np.ones_like(out), experts, np.array([[3, 1], [1, 3]]), np.ones((2, 2), np.float32), out)
    tallies = profiled.take_tallies()
    assert list(tallies) == ["add_experts gate/up down"]
    assert tallies["add_experts gate/up down"].bytes_read == 2 * 3 * 32 * 32 * 4
