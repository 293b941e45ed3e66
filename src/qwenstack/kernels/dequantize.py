"""How the bytes of each storage type turn into numbers.

Every quantised type is one formula, `value = scale · (code - zero) + offset`: unsigned codes, one scale (and for some
types one offset) for a group of 16 or 32 values. `unpack` gives the parts, `dequantize` the values.

Source: the block structures of ggml (`ggml-common.h`); equality with the `gguf` package bit for bit is a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qwenstack.core.weight_type import WeightType

FLOAT16_OFFSETS = {
    WeightType.Q4_0: (0,),
    WeightType.Q4_1: (0, 2),
    WeightType.Q5_0: (0,),
    WeightType.Q5_1: (0, 2),
    WeightType.Q8_0: (0,),
    WeightType.Q2_K: (80, 82),
    WeightType.Q3_K: (108,),
    WeightType.Q4_K: (0, 2),
    WeightType.Q5_K: (0, 2),
    WeightType.Q6_K: (208,),
}
"""Where a block keeps its float16 scales and offsets; all other bytes may be anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRows:
    """Rows of n quantised values, taken apart."""

    codes: np.ndarray
    """`[rows, n]` uint8."""
    zero: int
    """The code that means 0."""
    scales: np.ndarray
    """`[rows, groups]` float32."""
    offsets: np.ndarray | None
    """`[rows, groups]` float32; None for types that are symmetric around `zero`."""

    @property
    def group_size(self) -> int:
        """Values that share a scale: 16 or 32."""
        return self.codes.shape[1] // self.scales.shape[1]


def dequantize(data: np.ndarray, weight_type: WeightType) -> np.ndarray:
    """Return the values of stored rows as float32.

    Shapes: `data` `[rows, row_bytes]` uint8 (or one row `[row_bytes]`), result `[rows, n]` float32.

    Raises:
        ValueError: the rows are not a whole number of blocks.
    """
    rows = np.ascontiguousarray(np.atleast_2d(data))
    if weight_type.is_float:
        return _float_values(rows, weight_type)
    parts = unpack(rows, weight_type)
    num_rows, num_groups = parts.scales.shape
    codes = parts.codes.reshape(num_rows, num_groups, parts.group_size).astype(np.int16) - np.int16(parts.zero)
    values = parts.scales[:, :, None] * codes.astype(np.float32)
    if parts.offsets is not None:
        values += parts.offsets[:, :, None]
    return values.reshape(parts.codes.shape)


def unpack(data: np.ndarray, weight_type: WeightType) -> QuantizedRows:
    """Take rows of a quantised type apart.

    Shapes: `data` `[rows, row_bytes]` uint8, contiguous.

    Raises:
        ValueError: the type is a float type, or the rows are not a whole number of blocks.
    """
    if weight_type not in _UNPACKERS:
        raise ValueError(f"{weight_type.name} is not a quantised type.")
    _check_row_bytes(data, weight_type)
    num_rows, row_bytes = data.shape
    row_blocks = row_bytes // weight_type.block_bytes
    zero, unpack_blocks = _UNPACKERS[weight_type]
    codes, scales, offsets = unpack_blocks(data.reshape(num_rows * row_blocks, weight_type.block_bytes))
    groups_shape = (num_rows, row_blocks * scales.shape[1])
    return QuantizedRows(
        codes=codes.reshape(num_rows, row_blocks * weight_type.block_size),
        zero=zero,
        scales=scales.reshape(groups_shape),
        offsets=None if offsets is None else offsets.reshape(groups_shape),
    )


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16 that uint16 holds; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even, held as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def _check_row_bytes(data: np.ndarray, weight_type: WeightType) -> None:
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] % weight_type.block_bytes:
        raise ValueError(
            f"{weight_type.name} rows are whole blocks of {weight_type.block_bytes} bytes; "
            f"got {data.dtype} of shape {list(data.shape)}."
        )


def _float_values(data: np.ndarray, weight_type: WeightType) -> np.ndarray:
    _check_row_bytes(data, weight_type)
    if weight_type is WeightType.BF16:
        return bfloat16_to_float32(data.view(np.uint16))
    return data.view(np.float32 if weight_type is WeightType.F32 else np.float16).astype(np.float32)


_Parts: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Codes `[blocks, block_size]`, scales `[blocks, groups]`, offsets `[blocks, groups]` or None."""


def _half(block_bytes: np.ndarray) -> np.ndarray:
    """Read float16 `[blocks, k]` from bytes `[blocks, 2k]`."""
    return np.ascontiguousarray(block_bytes).view(np.float16).astype(np.float32)


def _split(packed: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Spread fields of `bits` bits; each run of bytes holds all its lowest fields first, then all the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    num_blocks, num_bytes = packed.shape
    fields = (packed.reshape(num_blocks, num_bytes // run, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(num_blocks, num_bytes * 8 // bits)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Bit i of 4 bytes is bit 4 of code i."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: np.ndarray) -> _Parts:
    return _split(blocks[:, 2:], 4, 16), _half(blocks[:, :2]), None


def _q4_1(blocks: np.ndarray) -> _Parts:
    return _split(blocks[:, 4:], 4, 16), _half(blocks[:, :2]), _half(blocks[:, 2:4])


def _q5_0(blocks: np.ndarray) -> _Parts:
    return _split(blocks[:, 6:], 4, 16) | _fifth_bits(blocks[:, 2:6]), _half(blocks[:, :2]), None


def _q5_1(blocks: np.ndarray) -> _Parts:
    codes = _split(blocks[:, 8:], 4, 16) | _fifth_bits(blocks[:, 4:8])
    return codes, _half(blocks[:, :2]), _half(blocks[:, 2:4])


def _q8_0(blocks: np.ndarray) -> _Parts:
    return blocks[:, 2:] ^ np.uint8(0x80), _half(blocks[:, :2]), None


def _q2_k(blocks: np.ndarray) -> _Parts:
    scales, codes = blocks[:, :16], _split(blocks[:, 16:80], 2, 32)
    return codes, _half(blocks[:, 80:82]) * (scales & 15), -(_half(blocks[:, 82:84]) * (scales >> 4))


def _q3_k(blocks: np.ndarray) -> _Parts:
    low, high = _split(blocks[:, 32:96], 2, 32), _split(blocks[:, :32], 1, 32)
    scale_low, scale_high = _split(blocks[:, 96:104], 4, 8), _split(blocks[:, 104:108], 2, 4)
    scales = (scale_low | (scale_high << np.uint8(4))).astype(np.float32) - np.float32(32)
    return low | (high << np.uint8(2)), _half(blocks[:, 108:110]) * scales, None


def _k_scales_and_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of 6 bits each from 12 bytes."""
    first, second, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (low & 15) | ((first >> 2) & 48)], axis=1)
    mins = np.concatenate([second & 63, (low >> 4) | ((second >> 2) & 48)], axis=1)
    return scales, mins


def _q4_k(blocks: np.ndarray) -> _Parts:
    scales, mins = _k_scales_and_mins(blocks[:, 4:16])
    return _split(blocks[:, 16:], 4, 32), _half(blocks[:, :2]) * scales, -(_half(blocks[:, 2:4]) * mins)


def _q5_k(blocks: np.ndarray) -> _Parts:
    scales, mins = _k_scales_and_mins(blocks[:, 4:16])
    codes = _split(blocks[:, 48:], 4, 32) | (_split(blocks[:, 16:48], 1, 32) << np.uint8(4))
    return codes, _half(blocks[:, :2]) * scales, -(_half(blocks[:, 2:4]) * mins)


def _q6_k(blocks: np.ndarray) -> _Parts:
    codes = _split(blocks[:, :128], 4, 64) | (_split(blocks[:, 128:192], 2, 32) << np.uint8(4))
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return codes, _half(blocks[:, 208:210]) * scales, None


_UNPACKERS: dict[WeightType, tuple[int, Callable[[np.ndarray], _Parts]]] = {
    WeightType.Q4_0: (8, _q4_0),
    WeightType.Q4_1: (0, _q4_1),
    WeightType.Q5_0: (16, _q5_0),
    WeightType.Q5_1: (0, _q5_1),
    WeightType.Q8_0: (128, _q8_0),
    WeightType.Q2_K: (0, _q2_k),
    WeightType.Q3_K: (4, _q3_k),
    WeightType.Q4_K: (0, _q4_k),
    WeightType.Q5_K: (0, _q5_k),
    WeightType.Q6_K: (32, _q6_k),
}
"""The zero code and the unpacker of each quantised type."""
