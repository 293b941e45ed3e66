"""How one head's key or value of one token lies in the cache: float32, float16, bfloat16 in uint16, or int8.

An int8 row is a float16 scale for each group of 16 columns, and then the codes. `csrc/kernels/kv_cache.h` has the same
formula; equality bit for bit is a test.
"""

from __future__ import annotations

import numpy as np

from qwenstack.kernels.dequantize import bfloat16_to_float32, float32_to_bfloat16

CACHE_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint16), np.dtype(np.int8))

INT8_GROUP = 16
"""Columns that share a scale. Groups of 16 with float16 scales take as much memory as groups of 32 with float32 ones
and lose half as much (docs/precision.md)."""
MAX_INT8_HEAD_DIM = 1024
"""The native kernels keep one head on the stack."""


def row_width(head_dim: int, dtype: np.dtype) -> int:
    """Return how many items of `dtype` a row has."""
    return head_dim + 2 * _num_groups(head_dim) if dtype == np.int8 else head_dim


def head_dim_of(width: int, dtype: np.dtype) -> int | None:
    """Return the head width whose rows have `width` items; None if there is none."""
    if dtype != np.int8:
        return width
    head_dim = width - 2 * -(-width // (INT8_GROUP + 2))
    return head_dim if head_dim > 0 and row_width(head_dim, dtype) == width else None


def to_rows(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round float32 `[..., H]` to rows `[..., row_width]`."""
    if dtype == np.uint16:
        return float32_to_bfloat16(values)
    if dtype == np.int8:
        return _to_int8_rows(values)
    with np.errstate(over="ignore"):  # beyond float16 is infinity
        return values.astype(dtype)


def from_rows(rows: np.ndarray) -> np.ndarray:
    """Return the values `[..., H]` float32 of rows."""
    if rows.dtype == np.uint16:
        return bfloat16_to_float32(rows)
    if rows.dtype == np.int8:
        return _from_int8_rows(rows)
    return rows.astype(np.float32)


def _num_groups(head_dim: int) -> int:
    return -(-head_dim // INT8_GROUP)


def _to_int8_rows(values: np.ndarray) -> np.ndarray:
    head_dim = values.shape[-1]
    num_groups = _num_groups(head_dim)
    padded = np.zeros((*values.shape[:-1], num_groups * INT8_GROUP), np.float32)
    padded[..., :head_dim] = values
    groups = padded.reshape(*values.shape[:-1], num_groups, INT8_GROUP)
    with np.errstate(over="ignore"):  # a scale beyond float16 is infinity, and the group NaN
        scales = (np.abs(groups).max(axis=-1) * np.float32(1 / 127)).astype(np.float16)
    wide = scales.astype(np.float32)
    usable = np.isfinite(wide) & (wide != 0)
    inverse = np.divide(np.float32(1), wide, where=usable, out=np.zeros_like(wide))
    whole = np.rint(np.where(usable[..., None], groups, np.float32(0)) * inverse[..., None])
    codes = np.clip(whole, -127, 127).astype(np.int8).reshape(padded.shape)[..., :head_dim]
    return np.concatenate([scales.view(np.int8), codes], axis=-1)


def _from_int8_rows(rows: np.ndarray) -> np.ndarray:
    head_dim = head_dim_of(rows.shape[-1], rows.dtype)
    assert head_dim is not None
    scale_bytes = 2 * _num_groups(head_dim)
    scales = np.ascontiguousarray(rows[..., :scale_bytes]).view(np.float16).astype(np.float32)
    codes = rows[..., scale_bytes:].astype(np.float32)
    with np.errstate(invalid="ignore"):  # 0 times the infinite scale of a poisoned group
        return codes * np.repeat(scales, INT8_GROUP, axis=-1)[..., :head_dim]
