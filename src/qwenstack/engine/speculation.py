"""Guesses of what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRequest:
    """A sequence whose next tokens may be guessed."""

    key: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    limit: int
    """Guesses at most."""


class Speculator(Protocol):
    """Guesses tokens; wrong guesses cost time, never change a result."""

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Return guesses for each request, maybe none."""
        ...

    def observe(self, key: int, *, num_drafts: int, num_accepted: int) -> None:
        """Learn how good the last guesses were."""
        ...

    def forget(self, key: int) -> None:
        """Drop what is kept for a sequence that ended."""
        ...
