"""Vectors that stand for texts: what goes in and how a vector is shortened."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import Literal, TypeAlias

InputType: TypeAlias = Literal["query", "passage"]
"""What a text is to a model that makes a difference: something that searches, or something that is found."""

Vector: TypeAlias = "array[float]"
"""float32 numbers of length one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingInput:
    """A text as one model reads it, counted and ready to be embedded; only that model's `prepare` makes one."""

    content: str | tuple[int, ...]
    """The text without what the model wants before it, or token ids with all that it wants."""
    num_tokens: int
    """Tokens that the model computes, its own marks included."""
    input_type: InputType
    is_cut: bool = False
    """Whether the end of the text was left out to make it fit."""


def shorten(vector: Vector, dimensions: int) -> Vector:
    """Return the first numbers of a vector, scaled to length one again.

    A model is trained so that this is a good vector too, or it is not: its card says from how many on.
    Source: Kusupati et al. 2022, Matryoshka Representation Learning, arXiv:2205.13147, section 3.
    """
    if dimensions == len(vector):
        return vector
    head = vector[:dimensions]
    length = math.sqrt(math.fsum(number * number for number in head)) or 1.0
    return array("f", [number / length for number in head])
