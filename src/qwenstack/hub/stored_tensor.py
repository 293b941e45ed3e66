"""A tensor as it lies in a model file: its type, its shape and its raw bytes, not copied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qwenstack.core.weight_type import WeightType

Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredTensor:
    """One tensor of a mapped file.

    Shapes: `data` is uint8 `[rows, row_bytes]`, read only, a view of the file; leading axes of `shape` are flattened
        into rows, and a tensor of one axis (or none) is one row.
    """

    name: str
    """The name in the file."""
    weight_type: WeightType
    shape: tuple[int, ...]
    """Row-major, as Hugging Face writes it: `(out_features, in_features)`."""
    data: Bytes

    @property
    def num_values(self) -> int:
        """How many values the tensor holds."""
        return math.prod(self.shape)


def stored_bytes(weight_type: WeightType, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes in a file.

    Raises:
        ValueError: a row is not a whole number of blocks.
    """
    return math.prod(shape[:-1]) * weight_type.row_bytes(_row_length(shape))


def view_tensor(name: str, weight_type: WeightType, shape: tuple[int, ...], raw: Bytes) -> StoredTensor:
    """Wrap the `stored_bytes` bytes of a tensor without copying them."""
    rows = math.prod(shape[:-1])
    data = raw.reshape(rows, weight_type.row_bytes(_row_length(shape)))
    return StoredTensor(name=name, weight_type=weight_type, shape=shape, data=data)


def _row_length(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 1
