"""The storage types of weights: how many values a block holds and how many bytes it takes.

Names are GGUF's; `F32`, `F16` and `BF16` are also the names that safetensors uses.
Source: ggml's `GGML_QUANT_SIZES` as published in the `gguf` package, checked by `tests/unit/core/test_weight_type.py`.
"""

from __future__ import annotations

from enum import Enum


class WeightType(Enum):
    """One storage type: `WeightType.Q4_0.block_size` values take `.block_bytes` bytes."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q2_K = (10, 256, 84)
    Q3_K = (11, 256, 110)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    BF16 = (30, 1, 2)

    def __init__(self, gguf_id: int, block_size: int, block_bytes: int) -> None:
        """Spell the tuple out as attributes."""
        self.gguf_id = gguf_id
        """GGUF's number of the type."""
        self.block_size = block_size
        """Values in a block."""
        self.block_bytes = block_bytes
        """Bytes a block takes."""

    @property
    def is_float(self) -> bool:
        """Whether each value is stored on its own, as a float."""
        return self.block_size == 1

    def row_bytes(self, num_values: int) -> int:
        """Return the bytes that a row of `num_values` takes.

        Raises:
            ValueError: the row is not a whole number of blocks.
        """
        if num_values % self.block_size:
            raise ValueError(
                f"A row of {num_values} values is not a whole number of {self.name} blocks of {self.block_size}."
            )
        return num_values // self.block_size * self.block_bytes


WEIGHT_TYPE_BY_GGUF_ID = {weight_type.gguf_id: weight_type for weight_type in WeightType}
