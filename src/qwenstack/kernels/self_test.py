"""Does this build, on this processor, compute what its numpy twin computes?

Every operation runs once on a tiny fixed input, with each storage type of weights, keys and values, before an engine
starts: a processor with a broken feature or a miscompiled build must not answer nonsense. It finds results that are
wrong, not those that are less exact than they should be; equality of bits is what `tests/numerics/kernels` is for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels.dequantize import FLOAT16_OFFSETS, float32_to_bfloat16
from qwenstack.kernels.kv_rows import CACHE_DTYPES, from_rows, row_width, to_rows
from qwenstack.kernels.protocol import Kernels

_SAME_NUMBERS = 1e-5
"""Float32 sums of a few hundred products in another order, relative to the largest result."""
_CACHE_STEPS = {np.float32: _SAME_NUMBERS, np.float16: 2.0**-10, np.uint16: 2.0**-7, np.int8: 0.02}
"""What a key may be off where it is rounded to the other neighbour: one step, relative to the largest."""
_REST_STEP = 1e-4
"""The same for what 8-bit rounding took away of an activation, which is rounded to 1 / 127 of 1 / 127."""

_EPS = 1e-6
_ROWS = 18
"""A whole tile and a part of one."""
_COLUMNS = 64
"""Two blocks of 32; types with larger blocks get one of those."""
_TOKENS = 18
"""Enough for the kernels that expand the weights first; the first two alone go through those that do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """What came of a self-test."""

    num_operations: int
    """With each storage type counted."""
    wrong: tuple[str, ...]
    """Operations whose numbers were not those of the twin, such as `linear Q4_K`."""
    duration_s: float


def run_self_test(kernels: Kernels, twin: Kernels) -> SelfTest:
    """Compare each operation with that of other kernels, which are taken to be right."""
    start = time.perf_counter()
    inputs = _Inputs()
    cases = tuple(_cases())
    wrong = tuple(case.operation for case in cases if not case.agrees(inputs, kernels, twin))
    duration_s = time.perf_counter() - start
    return SelfTest(num_operations=len(cases), wrong=wrong, duration_s=duration_s)


@dataclass(frozen=True, slots=True)
class _Case:
    operation: str
    compute: Callable[[_Inputs, Kernels], np.ndarray]
    tolerance: float = _SAME_NUMBERS

    def agrees(self, inputs: _Inputs, kernels: Kernels, twin: Kernels) -> bool:
        actual, expected = self.compute(inputs, kernels), self.compute(inputs, twin)
        with np.errstate(all="ignore"):  # nonsense may be of any size
            error = np.abs(actual - expected).max()
        return bool(error <= self.tolerance * np.abs(expected).max())  # NaN is not


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    weight_type: WeightType
    shape: tuple[int, int]
    data: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoraMatrix:
    down: _Weight
    up: _Weight
    scale: float
    first_column: int


def _cases() -> Iterator[_Case]:
    for weight_type in WeightType:
        yield _Case(f"linear {weight_type.name}", partial(_linear, weight_type))
    yield _Case("linear Q8_0 at 16 bits", _linear_at_16_bits, _REST_STEP)
    yield _Case("gate_up_silu", _gate_up_silu)
    yield _Case("add_experts", _add_experts)
    yield _Case("silu_times", _silu_times)
    yield _Case("add_lora", _add_lora)
    yield _Case("rms_norm", _rms_norm)
    for dtype in CACHE_DTYPES:
        name = "bfloat16" if dtype == np.uint16 else dtype.name
        yield _Case(f"rope_and_write_kv {name}", partial(_rope_and_write_kv, dtype), _CACHE_STEPS[dtype.type])
        yield _Case(f"attend {name}", partial(_attend, dtype))


class _Inputs:
    """Random numbers that are always the same. Not numpy's: to import them takes as long as everything else here.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
    """

    def __init__(self) -> None:
        z = np.arange(1, 1 + (1 << 13), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        self._bytes = (z ^ (z >> np.uint64(31))).astype(np.uint8)
        self._values = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-22) - np.float32(2)

    def values(self, *shape: int, at: int = 0) -> np.ndarray:
        """Return values between -2 and 2, from some place on."""
        count = math.prod(shape)
        return self._values[at : at + count].reshape(shape).copy()

    def weight(self, weight_type: WeightType, rows: int = _ROWS, columns: int = _COLUMNS, at: int = 0) -> _Weight:
        """Return values of a float type, or random codes of a quantised one under scales of a sensible size."""
        if weight_type.is_float:
            values = self.values(rows, columns, at=at)
            stored = {
                WeightType.F32: values,
                WeightType.F16: values.astype(np.float16),
                WeightType.BF16: float32_to_bfloat16(values),
            }[weight_type]
            return _Weight(weight_type=weight_type, shape=(rows, columns), data=stored.view(np.uint8))
        row_bytes = weight_type.row_bytes(columns)
        data = self._bytes[at : at + rows * row_bytes].reshape(rows, row_bytes).copy()
        blocks = data.reshape(-1, weight_type.block_bytes)
        for offset in FLOAT16_OFFSETS[weight_type]:
            scales = np.float32(0.05) + np.float32(0.01) * self.values(len(blocks), 1, at=offset)
            blocks[:, offset : offset + 2] = scales.astype(np.float16).view(np.uint8)
        return _Weight(weight_type=weight_type, shape=(rows, columns), data=data)


def _unwritten(*shape: int) -> np.ndarray:
    """Return a result that nobody computed: memory as it comes could hold the right one from before."""
    return np.full(shape, np.nan, np.float32)


def _linear(weight_type: WeightType, inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    """Multiply many tokens, and two of them alone, and add the products to what is there.

    Only float weights come with a norm: one that rounds otherwise in its last bit could round an activation to the
    other int8.
    """
    columns = max(_COLUMNS, weight_type.block_size)
    packed = kernels.pack([inputs.weight(weight_type, columns=columns)], inputs.values(_ROWS, at=2000))
    norm_weight = inputs.values(columns, at=3000) if weight_type.is_float else None
    outs: list[np.ndarray] = []
    for num_tokens in (_TOKENS, 2):
        out_TO = inputs.values(num_tokens, _ROWS, at=4000)
        x_TD = inputs.values(num_tokens, columns)
        kernels.linear(x_TD, packed, out_TO, norm_weight=norm_weight, eps=_EPS, accumulate=True)
        outs.append(out_TO)
    return np.concatenate(outs)


def _linear_at_16_bits(inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    return _linear(WeightType.Q8_0, inputs, kernels.with_activation_bits(16))


def _gate_up_silu(inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    gate, up = (inputs.weight(WeightType.Q4_0, at=at) for at in (1000, 2000))
    out_TF = _unwritten(_TOKENS, _ROWS)
    kernels.gate_up_silu(inputs.values(_TOKENS, _COLUMNS), kernels.pack([gate, up]), out_TF)
    return out_TF


def _add_experts(inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    experts = [
        (
            kernels.pack([inputs.weight(WeightType.Q4_0, rows=_COLUMNS, at=at + place) for place in (0, 100)]),
            kernels.pack([inputs.weight(WeightType.F16, rows=_COLUMNS, at=at)]),
        )
        for at in (0, 500, 900)
    ]
    out_TD = inputs.values(3, _COLUMNS, at=4000)
    chosen_Tk = np.array([[2, 0], [0, 2], [2, 1]], np.int64)
    kernels.add_experts(inputs.values(3, _COLUMNS), experts, chosen_Tk, inputs.values(3, 2, at=3000), out_TD)
    return out_TD


def _silu_times(inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    out_TF = _unwritten(2, _ROWS)
    kernels.silu_times(inputs.values(2, 2 * _ROWS) * np.float32(4), out_TF)
    return out_TF


def _add_lora(inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    rank = 3
    down, up = inputs.weight(WeightType.F32, rows=rank), inputs.weight(WeightType.F16, columns=rank)
    lora = kernels.pack_lora([_LoraMatrix(down=down, up=up, scale=0.5, first_column=1)], _ROWS + 2)
    out_TO = inputs.values(4, _ROWS + 2, at=4000)
    kernels.add_lora(
        inputs.values(4, _COLUMNS), [(1, 3, lora)], out_TO, norm_weight=inputs.values(_COLUMNS, at=3000), eps=_EPS
    )
    return out_TO


def _rms_norm(inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    out_TD = _unwritten(2, _COLUMNS + 2)
    kernels.rms_norm(inputs.values(2, _COLUMNS + 2), inputs.values(_COLUMNS + 2, at=3000), _EPS, out_TD)
    return out_TD


_HEADS, _KV_HEADS, _HEAD_DIM = 4, 2, 36
"""Half a head, which is turned at a time, is a vector of 16 lanes and a part of one."""
_BLOCK_SIZE = 8


def _cache_shape(num_blocks: int, dtype: np.dtype) -> tuple[int, ...]:
    return num_blocks, _KV_HEADS, _BLOCK_SIZE, row_width(_HEAD_DIM, dtype)


def _rope_and_write_kv(dtype: np.dtype, inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    num_tokens = 3
    qkv_TW = inputs.values(num_tokens, (_HEADS + 2 * _KV_HEADS) * _HEAD_DIM)
    angles = inputs.values(num_tokens, _HEAD_DIM // 2)
    k_cache, v_cache = (np.zeros(_cache_shape(2, dtype), dtype) for _ in range(2))
    kernels.rope_and_write_kv(
        qkv_TW,
        num_heads=_HEADS,
        num_kv_heads=_KV_HEADS,
        q_norm_H=inputs.values(_HEAD_DIM, at=1000),
        k_norm_H=inputs.values(_HEAD_DIM, at=2000),
        eps=_EPS,
        cos_T_half=np.cos(angles),
        sin_T_half=np.sin(angles),
        slot_mapping=np.array([15, 0, 6]),
        k_cache=k_cache,
        v_cache=v_cache,
    )
    return np.concatenate([qkv_TW.ravel(), from_rows(k_cache).ravel(), from_rows(v_cache).ravel()])


def _attend(dtype: np.dtype, inputs: _Inputs, kernels: Kernels) -> np.ndarray:
    """Attend to two sequences, of which one goes beyond the 32 keys that the kernels take at a time."""
    k_cache, v_cache = (
        to_rows(inputs.values(*_cache_shape(8, np.dtype(np.float32)), at=at), dtype) for at in (1000, 2000)
    )
    out_TX = _unwritten(4, _HEADS * _HEAD_DIM)
    kernels.attend(
        inputs.values(4, (_HEADS + 2 * _KV_HEADS) * _HEAD_DIM),
        num_heads=_HEADS,
        num_kv_heads=_KV_HEADS,
        k_cache=k_cache,
        v_cache=v_cache,
        query_start=np.array([0, 3, 4], np.int32),
        kv_len=np.array([37, 9], np.int32),
        block_table=np.array([[7, 2, 4, 0, 1], [3, 5, 0, 0, 0]], np.int32),
        scale=_HEAD_DIM**-0.5,
        out_TX=out_TX,
    )
    return out_TX
