"""Rotary position embedding: the angles by which a query or key at each position is turned."""

from __future__ import annotations

import numpy as np


class RotaryTable:
    """Cosines and sines for positions `0 … max_model_len - 1`.

    Frequencies and angles are rounded to float32 in the same order as in the reference implementation
    (`Qwen3RotaryEmbedding` in transformers), so that long positions agree too.
    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
    """

    def __init__(self, head_dim: int, rope_theta: float, max_model_len: int) -> None:
        """Compute the table once; it takes 4 · head_dim · max_model_len bytes."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = (np.float32(1.0) / np.power(np.float32(rope_theta), exponents)).astype(np.float32)
        angles = np.arange(max_model_len, dtype=np.float32)[:, None] * frequencies
        self._cos = np.cos(angles)
        self._sin = np.sin(angles)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and sines `[T, H/2]` float32 of the given positions `[T]`."""
        return self._cos[positions], self._sin[positions]
