"""Rotary position embedding: the angles by which a query or key at each position is turned, stretched or not.

A model that was trained on short texts reads longer ones when its slow rotations are slowed down further, so that no
pair of dimensions meets an angle it has never seen. The three ways that released checkpoints ask for are here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qwenstack.core.errors import ModelFormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Every rotation slowed down alike. Source: Chen et al. 2023, arXiv:2306.15595.

    Raises:
        ModelFormatError: the factor is below 1.
    """

    factor: float

    def __post_init__(self) -> None:
        """Refuse what would shrink the context."""
        _check_factor(self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN: fast rotations stay, slow ones are slowed down, those between are mixed; attention is sharpened.

    Source: Peng et al. 2023, arXiv:2309.00071, section 3; `_compute_yarn_parameters` of transformers.

    Raises:
        ModelFormatError: a value is outside its range.
    """

    factor: float
    """How much longer the context becomes. As written: it is never derived again from two lengths."""
    original_max_position_embeddings: int
    """Positions that the model was trained for before it was stretched."""
    attention_factor: float
    """What cosines and sines are multiplied by; `yarn_attention_factor` gives the usual one."""
    beta_fast: float = 32.0
    """Pairs that turn more often than this within the original length stay as they are."""
    beta_slow: float = 1.0
    """Pairs that turn less often than this are slowed down by the whole factor."""
    truncate: bool = True
    """Whether the bounds of the mixture are rounded outwards to whole pairs."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        _check_factor(self.factor)
        _check_positive("original_max_position_embeddings", self.original_max_position_embeddings)
        _check_positive("attention_factor", self.attention_factor)
        _check_ascending("beta_slow", self.beta_slow, "beta_fast", self.beta_fast)


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Long waves are stretched by the factor, short ones stay, those between are mixed, as in Llama 3.1.

    Source: `_compute_llama3_parameters` of transformers.

    Raises:
        ModelFormatError: a value is outside its range.
    """

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    """Waves longer than the original length divided by this are stretched by the whole factor."""
    high_freq_factor: float
    """Waves shorter than the original length divided by this stay as they are."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        _check_factor(self.factor)
        _check_positive("original_max_position_embeddings", self.original_max_position_embeddings)
        _check_ascending("low_freq_factor", self.low_freq_factor, "high_freq_factor", self.high_freq_factor)


RopeScaling: TypeAlias = LinearScaling | YarnScaling | Llama3Scaling


def yarn_attention_factor(factor: float, multiplier: float = 1.0) -> float:
    """Return by how much YaRN sharpens attention: 0.1 · multiplier · ln(factor) + 1.

    Source: Peng et al. 2023, arXiv:2309.00071, equation 22; `get_mscale` of transformers.
    """
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


class Rotary:
    """Turns positions into the cosines and sines of their angles.

    Frequencies and angles are rounded to float32 in the same order as in the reference implementation
    (`Qwen3RotaryEmbedding` in transformers), so that long positions agree too. Nothing is kept for all positions: 512
    of them take 0.2 ms, and a table for a model's longest context could take gigabytes.
    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
    """

    def __init__(self, head_dim: int, rope_theta: float, scaling: RopeScaling | None = None) -> None:
        """Compute one frequency for each pair of dimensions."""
        self.frequencies = _frequencies(head_dim, rope_theta, scaling)
        """`[H/2]` float32, in radians for each position."""
        self.attention_factor = scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and sines `[T, H/2]` float32 of the given positions `[T]`, times the attention factor."""
        angles = positions.astype(np.float32)[:, None] * self.frequencies
        factor = np.float32(self.attention_factor)
        return np.cos(angles) * factor, np.sin(angles) * factor


def _frequencies(head_dim: int, rope_theta: float, scaling: RopeScaling | None) -> np.ndarray:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    periods = np.power(np.float32(rope_theta), exponents)
    plain = (np.float32(1.0) / periods).astype(np.float32)
    match scaling:
        case None:
            return plain
        case LinearScaling():
            return plain / np.float32(scaling.factor)
        case YarnScaling():
            slowed = np.float32(1.0) / (np.float32(scaling.factor) * periods)
            kept = np.float32(1.0) - _yarn_ramp(head_dim, rope_theta, scaling)
            return slowed * (np.float32(1.0) - kept) + plain * kept
        case Llama3Scaling():
            return _llama3_frequencies(plain, scaling)


def _yarn_ramp(head_dim: int, rope_theta: float, scaling: YarnScaling) -> np.ndarray:
    """Return for each pair how much of it is slowed down, from 0 to 1, `[H/2]` float32."""

    def pair_that_turns(times: float) -> float:
        length = scaling.original_max_position_embeddings / (times * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(rope_theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001  # as in the reference, against a division by zero
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    return np.clip((pairs - np.float32(first)) / np.float32(last - first), np.float32(0.0), np.float32(1.0))


def _llama3_frequencies(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    factor = np.float32(scaling.factor)
    wavelengths = np.float32(2 * math.pi) / plain
    kept = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    mixed = (np.float32(1.0) - kept) * plain / factor + kept * plain
    return np.where(
        wavelengths > np.float32(original / low),
        plain / factor,
        np.where(wavelengths < np.float32(original / high), plain, mixed),
    ).astype(np.float32)


def _check_factor(factor: float) -> None:
    if not (math.isfinite(factor) and factor >= 1):
        raise ModelFormatError(f"The rotary embedding's `factor` is {factor!r}; it must be a number of at least 1.")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ModelFormatError(f"The rotary embedding's `{name}` is {value!r}; it must be a positive number.")


def _check_ascending(low_name: str, low: float, high_name: str, high: float) -> None:
    _check_positive(low_name, low)
    _check_positive(high_name, high)
    if low >= high:
        raise ModelFormatError(
            f"The rotary embedding's `{low_name}` is {low!r} and `{high_name}` {high!r}; the first must be smaller."
        )
