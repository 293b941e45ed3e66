"""Rotary position embedding: the angles by which a query or key at each position is turned."""

from __future__ import annotations

import numpy as np


class Rotary:
    """Turns positions into the cosines and sines of their angles.

    Frequencies and angles are rounded to float32 in the same order as in the reference implementation
    (`Qwen3RotaryEmbedding` in transformers), so that long positions agree too. Nothing is kept for all positions: 512
    of them take 0.2 ms, and a table for a model's longest context could take gigabytes.
    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
    """

    def __init__(self, head_dim: int, rope_theta: float) -> None:
        """Compute one frequency for each pair of dimensions."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        self._frequencies = (np.float32(1.0) / np.power(np.float32(rope_theta), exponents)).astype(np.float32)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and sines `[T, H/2]` float32 of the given positions `[T]`."""
        angles = positions.astype(np.float32)[:, None] * self._frequencies
        return np.cos(angles), np.sin(angles)
