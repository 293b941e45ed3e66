"""What does not fit together is not recorded, and what does not fit a recording is not run."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import DenseLayer, Kernels, PackedLinear, RecordedLayers, ReferenceKernels, load_kernels

WIDTH, HEAD_DIM, FFN, TOKENS = 32, 16, 48, 3
BLOCKS, BLOCK_SIZE = 4, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    weight_type: WeightType
    shape: tuple[int, int]
    data: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    down: Weight
    up: Weight
    scale: float = 1.0
    first_column: int = 0


def zeros(rows: int, columns: int) -> Weight:
    return Weight(weight_type=WeightType.F32, shape=(rows, columns), data=np.zeros((rows, 4 * columns), np.uint8))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = load_kernels(2, "auto")
    if isinstance(found, ReferenceKernels):
        pytest.skip("these kernels record nothing")
    return found


def packed(kernels: Kernels, *shapes: tuple[int, int]) -> PackedLinear:
    return kernels.pack([zeros(*shape) for shape in shapes])


def layer(kernels: Kernels, **changes: Any) -> DenseLayer:
    values = {
        "input_norm_D": np.ones(WIDTH, np.float32),
        "qkv": packed(kernels, (2 * HEAD_DIM, WIDTH), (HEAD_DIM, WIDTH), (HEAD_DIM, WIDTH)),
        "q_norm_H": None,
        "k_norm_H": None,
        "output": packed(kernels, (WIDTH, 2 * HEAD_DIM)),
        "mlp_norm_D": np.ones(WIDTH, np.float32),
        "gate_up": packed(kernels, (FFN, WIDTH), (FFN, WIDTH)),
        "down": packed(kernels, (WIDTH, FFN)),
    }
    return DenseLayer(**values | changes)


def cache(dtype: Any = np.float32, blocks: int = BLOCKS) -> tuple[np.ndarray, np.ndarray]:
    keys, values = (np.zeros((blocks, 1, BLOCK_SIZE, HEAD_DIM), dtype) for _ in range(2))
    return keys, values


def record(kernels: Kernels, layers: Any, caches: Any, num_heads: int = 2) -> RecordedLayers:
    recorded = kernels.record_layers(layers, caches, num_heads=num_heads, num_kv_heads=1, eps=1e-6, scale=0.25)
    assert recorded is not None
    return recorded


def arguments(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "x_TD": np.zeros((TOKENS, WIDTH), np.float32),
        "cos_T_half": np.ones((TOKENS, HEAD_DIM // 2), np.float32),
        "sin_T_half": np.zeros((TOKENS, HEAD_DIM // 2), np.float32),
        "slot_mapping": np.arange(TOKENS, dtype=np.int64),
        "query_start": np.array([0, TOKENS], np.int32),
        "kv_len": np.array([TOKENS], np.int32),
        "block_table": np.zeros((1, 1), np.int32),
        "lora": [],
        "activation_bits": 8,
    }
    return values | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"input_norm_D": np.ones(WIDTH + 1, np.float32)},
        {"mlp_norm_D": np.ones(WIDTH, np.float64)},
        {"q_norm_H": np.ones(HEAD_DIM + 2, np.float32)},
        {"qkv": [(4 * HEAD_DIM, WIDTH + 4)]},
        {"qkv": [(5 * HEAD_DIM, WIDTH)]},
        {"output": [(WIDTH, HEAD_DIM)]},
        {"output": [(WIDTH + 1, 2 * HEAD_DIM)]},
        {"gate_up": [(FFN, WIDTH)]},
        {"gate_up": [(FFN, WIDTH), (FFN + 1, WIDTH)]},
        {"gate_up": [(FFN + 1, WIDTH), (FFN + 1, WIDTH)]},
        {"down": [(WIDTH + 1, FFN)]},
    ],
    ids=str,
)
def test_parts_of_a_layer_fit_together(changes: dict[str, Any], kernels: Kernels) -> None:
    made = {key: packed(kernels, *value) if isinstance(value, list) else value for key, value in changes.items()}
    with pytest.raises(ValueError, match="record_layers: "):
        record(kernels, [layer(kernels), layer(kernels, **made)], [cache(), cache()])


@pytest.mark.parametrize(
    ("caches", "num_heads"),
    [
        ([], 2),
        ([cache()], 2),
        ([cache(), cache(np.float16)], 2),
        ([cache(), cache(blocks=BLOCKS + 1)], 2),
        ([cache(), (cache()[0], cache(np.float16)[1])], 2),
        ([cache(), cache()], 0),
        ([cache(), cache()], 3),
    ],
)
def test_caches_and_heads_fit_the_layers(caches: Any, num_heads: int, kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="record_layers: "):
        record(kernels, [layer(kernels)] * 2, caches, num_heads)


@pytest.mark.parametrize(
    "changes",
    [
        {"x_TD": np.zeros((TOKENS, WIDTH + 1), np.float32)},
        {"x_TD": np.zeros((2 * TOKENS, WIDTH), np.float32)[::2]},
        {"cos_T_half": np.ones((TOKENS, HEAD_DIM), np.float32)},
        {"sin_T_half": np.ones((TOKENS + 1, HEAD_DIM // 2), np.float32)},
        {"slot_mapping": np.full(TOKENS, BLOCKS * BLOCK_SIZE, np.int64)},
        {"slot_mapping": np.full(TOKENS, -1, np.int64)},
        {"query_start": np.array([0, TOKENS + 1], np.int32)},
        {"query_start": np.array([1, TOKENS], np.int32)},
        {"kv_len": np.array([TOKENS - 1], np.int32)},
        {"kv_len": np.array([BLOCK_SIZE + 1], np.int32)},
        {"block_table": np.full((1, 1), BLOCKS, np.int32)},
        {"block_table": np.zeros((2, 1), np.int32)},
        {"lora": [{}, {}]},
    ],
    ids=str,
)
def test_a_batch_fits_the_recording(changes: dict[str, Any], kernels: Kernels) -> None:
    recorded = record(kernels, [layer(kernels)], [cache()])
    with pytest.raises(ValueError, match="run_layers: "):
        recorded.run(**arguments(**changes))


@pytest.mark.parametrize(("first", "end", "out_features"), [(0, TOKENS + 1, WIDTH), (2, 1, WIDTH), (0, 1, WIDTH - 1)])
def test_adapters_fit_their_product(first: int, end: int, out_features: int, kernels: Kernels) -> None:
    recorded = record(kernels, [layer(kernels)], [cache()])
    lora = kernels.pack_lora([Lora(down=zeros(2, FFN), up=zeros(out_features, 2))], out_features)
    with pytest.raises(ValueError, match="run_layers: "):
        recorded.run(**arguments(lora=[{"down": [(first, end, lora)]}]))


def test_a_recording_keeps_what_it_needs(kernels: Kernels) -> None:
    keys, values = cache()
    own = layer(kernels)
    recorded = record(kernels, [own], [(keys, values)])
    kept = weakref.ref(keys)
    del keys, values, own
    gc.collect()
    assert kept() is not None
    recorded.run(**arguments())
    del recorded
    gc.collect()
    assert kept() is None
