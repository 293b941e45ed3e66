"""The operations in plain numpy: short enough to check by eye, the specification that every fast kernel is tested by.

A row's result does not depend on its neighbours: integer sums are exact in any order, and float sums run row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwenstack.kernels import checks
from qwenstack.kernels.dequantize import QuantizedRows, dequantize, unpack
from qwenstack.kernels.kv_rows import from_rows, to_rows
from qwenstack.kernels.protocol import (
    ActivationBits,
    Expert,
    Kernels,
    LoraMatrix,
    LoraRows,
    PackedLinear,
    PackedLora,
    RawWeight,
)

_ACTIVATION_GROUP = 32
"""Activations share an int8 scale in groups of this size, the smallest block of the weight types."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Segment:
    """One of the stacked matrices: float values, or codes around zero with their scales, by group of input columns."""

    floats: np.ndarray | None = None
    codes: np.ndarray | None = None
    """Codes minus their zero, as float32, where products and sums of a group are exact (below 2²⁴)."""
    parts: QuantizedRows | None = None

    @property
    def out_features(self) -> int:
        matrix = self.codes if self.floats is None else self.floats
        assert matrix is not None
        return len(matrix)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferencePackedLinear:
    """Stacked matrices, unpacked for numpy."""

    segments: tuple[_Segment, ...]
    bias: np.ndarray | None
    in_features: int
    out_features: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferencePackedLora:
    """Factors of stacked matrices as float32."""

    matrices: tuple[tuple[np.ndarray, np.ndarray, np.float32, int], ...]
    """Of each matrix `down` `[rank, D]`, `up` `[rows, rank]`, the scale and the first of its columns."""
    in_features: int
    out_features: int
    num_bytes: int


class ReferenceKernels:
    """`Kernels` in numpy.

    Args:
        activation_bits: 8 rounds the activations that meet quantised weights to int8; 16 also keeps, rounded again,
            what that took away.
    """

    def __init__(self, activation_bits: ActivationBits = 8) -> None:
        """Choose how activations are rounded."""
        self.activation_bits: ActivationBits = activation_bits

    @property
    def name(self) -> str:
        """The implementation and its instruction set."""
        return "reference (numpy)"

    def with_activation_bits(self, activation_bits: ActivationBits) -> Kernels:
        """See `Kernels.with_activation_bits`."""
        return ReferenceKernels(activation_bits)

    def pack(self, weights: Sequence[RawWeight], bias: np.ndarray | None = None) -> PackedLinear:
        """See `Kernels.pack`."""
        in_features, out_features = checks.check_pack(weights, bias)
        return ReferencePackedLinear(
            segments=tuple(_unpack_segment(weight) for weight in weights),
            bias=None if bias is None else bias.copy(),
            in_features=in_features,
            out_features=out_features,
            num_bytes=sum(weight.data.nbytes for weight in weights),
        )

    def linear(
        self,
        x_TD: np.ndarray,
        packed: PackedLinear,
        out_TO: np.ndarray,
        *,
        norm_weight: np.ndarray | None = None,
        eps: float = 0.0,
        accumulate: bool = False,
    ) -> None:
        """See `Kernels.linear`."""
        own = _own(packed, "linear")
        checks.check_linear("linear", x_TD, own, norm_weight, out_TO, own.out_features)
        result_TO = _product(_normed(x_TD, norm_weight, eps), own, self.activation_bits)
        if accumulate:
            out_TO += result_TO
        else:
            out_TO[...] = result_TO

    def gate_up_silu(
        self,
        x_TD: np.ndarray,
        packed: PackedLinear,
        out_TF: np.ndarray,
        *,
        norm_weight: np.ndarray | None = None,
        eps: float = 0.0,
    ) -> None:
        """See `Kernels.gate_up_silu`."""
        own = _own(packed, "gate_up_silu")
        sizes = [segment.out_features for segment in own.segments]
        if len(sizes) != 2 or sizes[0] != sizes[1]:
            raise ValueError(
                f"gate_up_silu: needs a gate and an up matrix of equal size, not matrices of {sizes} rows."
            )
        checks.check_linear("gate_up_silu", x_TD, own, norm_weight, out_TF, sizes[0])
        product_TF = _product(_normed(x_TD, norm_weight, eps), own, self.activation_bits)
        gate_TF, up_TF = np.split(product_TF, 2, axis=1)
        out_TF[...] = _silu(gate_TF) * up_TF

    def add_experts(
        self,
        x_TD: np.ndarray,
        experts: Sequence[Expert],
        chosen_Tk: np.ndarray,
        weights_Tk: np.ndarray,
        out_TD: np.ndarray,
    ) -> None:
        """See `Kernels.add_experts`."""
        checks.check_add_experts(x_TD, experts, chosen_Tk, weights_Tk, out_TD)
        for index, (gate_up, down) in enumerate(experts):
            tokens, ranks = np.nonzero(chosen_Tk == index)
            hidden_TF = np.empty((len(tokens), down.in_features), np.float32)
            self.gate_up_silu(x_TD[tokens], gate_up, hidden_TF)
            self.linear(hidden_TF, down, answer_TD := np.empty((len(tokens), out_TD.shape[1]), np.float32))
            np.add.at(out_TD, tokens, weights_Tk[tokens, ranks, None] * answer_TD)  # a token may come twice

    def silu_times(self, gate_up_TG: np.ndarray, out_TF: np.ndarray) -> None:
        """See `Kernels.silu_times`."""
        checks.check_silu_times(gate_up_TG, out_TF)
        gate_TF, up_TF = np.split(gate_up_TG, 2, axis=1)
        out_TF[...] = _silu(gate_TF) * up_TF

    def pack_lora(self, matrices: Sequence[LoraMatrix], out_features: int) -> PackedLora:
        """See `Kernels.pack_lora`."""
        in_features = checks.check_pack_lora(matrices, out_features)
        unpacked = tuple(
            (
                dequantize(matrix.down.data, matrix.down.weight_type),
                dequantize(matrix.up.data, matrix.up.weight_type),
                np.float32(matrix.scale),
                matrix.first_column,
            )
            for matrix in matrices
        )
        return ReferencePackedLora(
            matrices=unpacked,
            in_features=in_features,
            out_features=out_features,
            num_bytes=sum(down.nbytes + up.nbytes for down, up, _, _ in unpacked),
        )

    def add_lora(
        self,
        x_TD: np.ndarray,
        rows: Sequence[LoraRows],
        out_TO: np.ndarray,
        *,
        norm_weight: np.ndarray | None = None,
        eps: float = 0.0,
    ) -> None:
        """See `Kernels.add_lora`."""
        checks.check_add_lora(x_TD, rows, norm_weight, out_TO)
        for first, end, lora in rows:
            if not isinstance(lora, ReferencePackedLora):
                raise ValueError(f"add_lora: the factors were packed by other kernels ({type(lora).__name__}).")
            own_TD = _normed(x_TD[first:end], norm_weight, eps)
            for down, up, scale, column in lora.matrices:
                lowered = _float_product(own_TD, down) * scale
                out_TO[first:end, column : column + len(up)] += _float_product(lowered, up)

    def rms_norm(self, x_TD: np.ndarray, weight_D: np.ndarray, eps: float, out_TD: np.ndarray) -> None:
        """See `Kernels.rms_norm`."""
        checks.check_rms_norm(x_TD, weight_D, out_TD)
        out_TD[...] = _normed(x_TD, weight_D, eps)

    def rope_and_write_kv(
        self,
        qkv_TW: np.ndarray,
        *,
        num_heads: int,
        num_kv_heads: int,
        q_norm_H: np.ndarray | None,
        k_norm_H: np.ndarray | None,
        eps: float,
        cos_T_half: np.ndarray,
        sin_T_half: np.ndarray,
        slot_mapping: np.ndarray,
        k_cache: np.ndarray,
        v_cache: np.ndarray,
    ) -> None:
        """See `Kernels.rope_and_write_kv`."""
        head_dim = checks.check_rope(
            qkv_TW, num_heads, num_kv_heads, q_norm_H, k_norm_H, cos_T_half, sin_T_half, slot_mapping, k_cache, v_cache
        )
        qkv = qkv_TW.reshape(len(qkv_TW), num_heads + 2 * num_kv_heads, head_dim)
        q_TNH, k_TKH, v_TKH = np.split(qkv, [num_heads, num_heads + num_kv_heads], axis=1)
        q_TNH[...] = _rotated(_normed(q_TNH, q_norm_H, eps), cos_T_half, sin_T_half)
        block, offset = np.divmod(slot_mapping, k_cache.shape[2])
        k_TKH = _rotated(_normed(k_TKH, k_norm_H, eps), cos_T_half, sin_T_half)
        k_cache[block, :, offset] = to_rows(k_TKH, k_cache.dtype)
        v_cache[block, :, offset] = to_rows(v_TKH, v_cache.dtype)

    def attend(
        self,
        qkv_TW: np.ndarray,
        *,
        num_heads: int,
        num_kv_heads: int,
        k_cache: np.ndarray,
        v_cache: np.ndarray,
        query_start: np.ndarray,
        kv_len: np.ndarray,
        block_table: np.ndarray,
        scale: float,
        out_TX: np.ndarray,
    ) -> None:
        """See `Kernels.attend`."""
        head_dim = checks.check_attend(
            qkv_TW, num_heads, num_kv_heads, k_cache, v_cache, query_start, kv_len, block_table, out_TX
        )
        q_TNH = qkv_TW[:, : num_heads * head_dim].reshape(len(qkv_TW), num_heads, head_dim)
        out_TNH = out_TX.reshape(q_TNH.shape)
        for sequence, length in enumerate(kv_len):
            first, last = query_start[sequence], query_start[sequence + 1]
            k_KSH = _gather(k_cache, block_table[sequence], length)
            v_KSH = _gather(v_cache, block_table[sequence], length)
            for row in range(first, last):
                visible = length - (last - 1 - row)
                with np.errstate(invalid="ignore", over="ignore"):  # infinite keys give NaN, as in the native kernels
                    out_TNH[row] = _attend_one(q_TNH[row], k_KSH[:, :visible], v_KSH[:, :visible], scale)

    def record_layers(self, *_: object, **__: object) -> None:
        """See `Kernels.record_layers`; the model's own loop is what a recording is tested against."""


def _own(packed: PackedLinear, operation: str) -> ReferencePackedLinear:
    if not isinstance(packed, ReferencePackedLinear):
        raise ValueError(f"{operation}: the weights were packed by other kernels ({type(packed).__name__}).")
    return packed


def _unpack_segment(weight: RawWeight) -> _Segment:
    if weight.weight_type.is_float:
        return _Segment(floats=dequantize(weight.data, weight.weight_type))
    parts = unpack(np.ascontiguousarray(weight.data), weight.weight_type)
    return _Segment(codes=parts.codes.astype(np.float32) - np.float32(parts.zero), parts=parts)


def _normed(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    """RMS-normalise the last axis; without a weight x as it is."""
    if weight is None:
        return x
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return x * (np.float32(1) / np.sqrt(mean_square + np.float32(eps))) * weight


def _product(x_TD: np.ndarray, packed: ReferencePackedLinear, activation_bits: ActivationBits) -> np.ndarray:
    planes: list[tuple[np.ndarray, np.ndarray]] = []
    if any(segment.parts is not None for segment in packed.segments):
        planes.append(quantize_activations(x_TD))
        if activation_bits == 16:
            with np.errstate(invalid="ignore"):
                planes.append(quantize_activations(x_TD - _rounded(*planes[0])))
    results: list[np.ndarray] = []
    for segment in packed.segments:
        if segment.floats is not None:
            results.append(_float_product(x_TD, segment.floats))
        else:
            with np.errstate(invalid="ignore", over="ignore"):  # a poisoned row gives NaN, as in the native kernels
                results.append(np.sum([_integer_product(*plane, segment) for plane in planes], axis=0))
    out_TO = np.concatenate(results, axis=1)
    return out_TO if packed.bias is None else out_TO + packed.bias


def _float_product(x_TD: np.ndarray, weight_OD: np.ndarray) -> np.ndarray:
    """Multiply row by row: one call for all rows may sum in an order that depends on their number."""
    out_TO = np.empty((len(x_TD), len(weight_OD)), np.float32)
    for x_D, out_O in zip(x_TD, out_TO, strict=True):
        np.matmul(weight_OD, x_D, out=out_O)
    return out_TO


def quantize_activations(x_TD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round each group of 32 values to multiples of amax / 127.

    A group that is not finite gets codes 0 and a scale that is not finite, so that it shows in the result.

    Shapes: codes `[T, D]` float32 with whole values in -127…127, scales `[T, D/32]` float32.
    """
    groups = x_TD.reshape(len(x_TD), x_TD.shape[1] // _ACTIVATION_GROUP, _ACTIVATION_GROUP)
    amax = np.max(np.abs(groups), axis=2)
    usable = np.isfinite(amax) & (amax >= SMALLEST_AMAX)
    inverse = np.divide(np.float32(127), amax, where=usable, out=np.zeros_like(amax))
    codes = np.rint(np.where(usable[:, :, None], groups, np.float32(0)) * inverse[:, :, None])
    scales = np.where(amax >= SMALLEST_AMAX, amax * np.float32(1 / 127), np.where(np.isnan(amax), amax, np.float32(0)))
    return codes.reshape(x_TD.shape), scales


def _rounded(codes_TD: np.ndarray, scales_TA: np.ndarray) -> np.ndarray:
    return codes_TD * np.repeat(scales_TA, _ACTIVATION_GROUP, axis=1)


SMALLEST_AMAX = np.float32(2.0**-100)
"""Groups below it count as zero: the quotient 127 / amax must stay finite."""


def _integer_product(codes_TD: np.ndarray, scales_TA: np.ndarray, segment: _Segment) -> np.ndarray:
    """Sum integers exactly within each group of columns, then groups in ascending order in float32."""
    assert segment.codes is not None
    assert segment.parts is not None
    size = segment.parts.group_size
    out_TO = np.zeros((len(codes_TD), segment.out_features), np.float32)
    for group, scale_O in enumerate(segment.parts.scales.T):
        columns = slice(group * size, (group + 1) * size)
        scale_T = scales_TA[:, columns.start // _ACTIVATION_GROUP]
        sums_TO = codes_TD[:, columns] @ segment.codes[:, columns].T
        out_TO += sums_TO * (scale_T[:, None] * scale_O)
        if segment.parts.offsets is not None:
            column_sums_T = scale_T * codes_TD[:, columns].sum(axis=1)
            out_TO += column_sums_T[:, None] * segment.parts.offsets[:, group]
    return out_TO


def _exp(x: np.ndarray) -> np.ndarray:
    """Return e^x of a clipped x: beyond ±87 the result would leave float32's normal range."""
    return np.exp(np.clip(x, np.float32(-87), np.float32(87)))


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (np.float32(1) + _exp(-x))


def _rotated(heads: np.ndarray, cos_T_half: np.ndarray, sin_T_half: np.ndarray) -> np.ndarray:
    """Turn each pair (i, i + H/2) of every head by its token's angle i."""
    first, second = np.split(heads, 2, axis=2)
    cos, sin = cos_T_half[:, None], sin_T_half[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)


def _gather(cache: np.ndarray, blocks: np.ndarray, length: int) -> np.ndarray:
    """Return the first `length` positions of a sequence as float32 `[K, S, H]`."""
    num_blocks = -(-int(length) // cache.shape[2])
    gathered = cache[blocks[:num_blocks]].swapaxes(0, 1)
    return from_rows(gathered.reshape(cache.shape[1], -1, cache.shape[3])[:, :length])


def _attend_one(q_NH: np.ndarray, k_KSH: np.ndarray, v_KSH: np.ndarray, scale: float) -> np.ndarray:
    """Softmax attention of one token; query head n reads key/value head n // G."""
    q_KGH = q_NH.reshape(len(k_KSH), -1, q_NH.shape[1])
    scores_KGS = np.matmul(q_KGH, k_KSH.swapaxes(1, 2)) * np.float32(scale)
    weights_KGS = np.exp(scores_KGS - scores_KGS.max(axis=2, keepdims=True))
    out_KGH = np.matmul(weights_KGS, v_KSH) / weights_KGS.sum(axis=2, keepdims=True)
    return out_KGH.reshape(q_NH.shape)
