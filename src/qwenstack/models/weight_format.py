"""Weights in another type than their file's, matrix by matrix as they are loaded."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from qwenstack.core.weight_type import WeightType
from qwenstack.hub.stored_tensor import StoredTensor
from qwenstack.kernels.dequantize import dequantize, float32_to_bfloat16

WeightFormat = Literal["stored", "bfloat16", "int8"]
"""`stored`: as in the file. `int8`: matrices of floats become Q8_0, half of bfloat16's bytes; quantised ones stay, they
are no larger. `bfloat16`: every matrix becomes bfloat16, so that activations are not rounded."""

_CHUNK_VALUES = 1 << 20
"""Values converted at a time: 4 MB as float32, so that the intermediate steps stay in the cache."""


def loaded_type(weight_type: WeightType, in_features: int, weight_format: WeightFormat) -> WeightType:
    """Return the type that a matrix has once it is loaded; rows that are no whole number of blocks stay as they are."""
    if weight_format == "bfloat16":
        return WeightType.BF16
    if weight_format == "int8" and weight_type.is_float and in_features % WeightType.Q8_0.block_size == 0:
        return WeightType.Q8_0
    return weight_type


def convert(tensor: StoredTensor, weight_format: WeightFormat) -> StoredTensor:
    """Return a matrix in the format asked for; one that has it already is not copied."""
    target = loaded_type(tensor.weight_type, tensor.shape[-1], weight_format)
    if target is tensor.weight_type:
        return tensor
    encode = _to_bfloat16 if target is WeightType.BF16 else quantize_q8_0
    data = np.empty((len(tensor.data), target.row_bytes(tensor.shape[-1])), np.uint8)
    step = max(1, _CHUNK_VALUES // tensor.shape[-1])
    for start in range(0, len(data), step):
        rows = slice(start, start + step)
        data[rows] = encode(dequantize(tensor.data[rows], tensor.weight_type))
    return dataclasses.replace(tensor, weight_type=target, data=data)


def quantize_q8_0(values: np.ndarray) -> np.ndarray:
    """Round rows of float32 to Q8_0: groups of 32 share the float16 scale amax / 127.

    Codes are rounded against the scale as it is stored, so that its own rounding costs nothing.

    Shapes: `values` `[rows, n]` float32, result `[rows, n / 32 * 34]` uint8.
    """
    block_size = WeightType.Q8_0.block_size
    groups = values.reshape(len(values), -1, block_size)
    scales = (np.abs(groups).max(axis=2, keepdims=True) / np.float32(127)).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, where=wide != 0, out=np.zeros_like(wide))
    codes = np.clip(np.rint(groups * inverse), -127, 127).astype(np.int8)
    blocks = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=2)
    return blocks.reshape(len(values), -1)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    return float32_to_bfloat16(values).view(np.uint8)
