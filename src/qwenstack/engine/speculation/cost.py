"""Whether a draft pays: what one more row costs a step against the chance that it saves a whole one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qwenstack.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """The time of a decoding step of t rows, in steps of one row: `1 + per_row * (t - 1)`.

    Raises:
        ConfigError: `per_row` is outside its range.
    """

    per_row: float = 0.2
    """Measured"""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 < self.per_row <= 1.0:
            raise ConfigError(
                f"A row more costs {self.per_row!r} of a step; it must be above 0 and at most 1. "
                "Measure it with `python benches/speculation.py --cost`."
            )

    def of(self, num_rows: int) -> float:
        """Return the time of a step."""
        return 1.0 + self.per_row * (num_rows - 1)

    def draft_length(self, chances: Iterable[float], *, num_running: int, limit: int) -> int:
        """Return how many drafts give the most tokens for the time of the step.

        A draft is worth its row while its chance to be kept, divided by the row's cost, is above the tokens for the
        time that the step gives without it. With many sequences running that rate is high, and only the surest pay.

        Args:
            chances: for each draft in order, how likely it is right if those before it are.
            num_running: sequences in the step, this one among them.
            limit: most drafts.
        """
        tokens, cost, kept, length = float(num_running), self.of(num_running), 1.0, 0
        for chance in chances:
            kept *= chance
            if length == limit or kept * cost <= tokens * self.per_row:
                break
            tokens += kept
            cost += self.per_row
            length += 1
        return length
