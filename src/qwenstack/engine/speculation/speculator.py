"""What the engine asks of whoever guesses tokens ahead.

A guess changes nothing but speed: the engine chooses every token itself and keeps the guesses that agree. So a
speculator needs no report of what became of its drafts; the tokens of the next request tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRequest:
    """One answer that the next step continues. The two lists are the engine's own and grow between steps."""

    key: int
    """Names the sequence in all steps."""
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    """The answer so far; it only grows, also when the engine computes the sequence again."""
    limit: int
    """Most drafts that may be given; 0 where the sequence runs but takes none."""

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Return the token ids of positions `start … stop - 1`, without copying the others."""
        num_prompt = len(self.prompt_token_ids)
        from_output = slice(max(start - num_prompt, 0), max(stop - num_prompt, 0))
        return [*self.prompt_token_ids[start:stop], *self.output_token_ids[from_output]]


class Speculator(Protocol):
    """Guesses how answers go on."""

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Return for each request the tokens that probably come next, none to `limit` of them.

        Args:
            requests: every sequence that decodes in the next step, so that the cost of a longer step is known.
        """
        ...

    def forget(self, key: int) -> None:
        """Drop what is kept of a sequence that is over; unknown keys are fine."""
        ...
