"""A gap in a file, and what a model reads to fill it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFile:
    """Another piece of code that helps to understand the file with the gap."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A place in a file where something is missing."""

    prefix: str
    """What stands before it."""
    suffix: str = ""
    """What stands after it."""
    context: Sequence[ContextFile] = ()
    """Other code, the most important last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillPrompt:
    """A gap in a model's own words."""

    token_ids: Sequence[int]
    stop_token_ids: Sequence[int]
    """Marks of another file or gap: where the model writes one, it has filled this one."""
    is_cut: bool
    """Whether something was left out to make it fit."""
