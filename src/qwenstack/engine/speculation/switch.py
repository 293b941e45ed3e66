"""Whether drafting pays for one answer, from what it cost and gave lately."""

from __future__ import annotations

from dataclasses import dataclass

_HORIZON = 32.0
"""Tokens after which an experience counts half."""
_MIN_TOKENS = 16.0
"""Tokens to watch before the first judgement; with the horizon, what does not pay is off within 32."""
_LEAST_GAIN = 1.02
_CLEAR_GAIN = 1.15


@dataclass(frozen=True, slots=True)
class Switch:
    """Tokens that came and the time they took, in steps without drafts; older ones count less."""

    is_on: bool = True
    num_tokens: float = 0.0
    cost: float = 0.0

    @property
    def gain(self) -> float:
        """Tokens for the time of a step without drafts; 1 is no gain."""
        return self.num_tokens / self.cost if self.cost else 1.0

    def after(self, num_tokens: int, cost: float) -> Switch:
        """Return the switch after a step that gave these tokens for this time, or would have while it was off."""
        keep = 0.5 ** (num_tokens / _HORIZON)
        seen = Switch(self.is_on, self.num_tokens * keep + num_tokens, self.cost * keep + cost)
        if seen.num_tokens < _MIN_TOKENS:
            return seen
        wanted = _LEAST_GAIN if self.is_on else _CLEAR_GAIN
        return Switch(seen.gain >= wanted, seen.num_tokens, seen.cost)
