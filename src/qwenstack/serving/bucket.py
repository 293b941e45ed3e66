"""A bucket of allowance: it fills steadily, is emptied by use, and says how long to wait for more."""

from __future__ import annotations

SECONDS_PER_MINUTE = 60.0


class Bucket:
    """Holds what a minute allows, and gets it back over a minute.

    Taking needs as much as is taken. What turns out to have been used beyond that is owed: the level goes below zero
    and the next taker waits, so that over any longer time no more is used than was filled in, plus one bucket.

    Source: the token bucket of RFC 2697, section 3, with a level that may be negative.
    """

    def __init__(self, per_minute: int, *, now_s: float) -> None:
        """Start full."""
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """Return what is in it."""
        filled = (now_s - self._at_s) * self.per_minute / SECONDS_PER_MINUTE
        return min(float(self.per_minute), self._level + filled)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return how long it takes until `amount`, which is at most `per_minute`, can be taken; 0: it can be now."""
        return max(0.0, amount - self.level(now_s)) * SECONDS_PER_MINUTE / self.per_minute

    def take(self, amount: float, now_s: float) -> None:
        """Take so much; a negative amount is given back."""
        self._level = min(float(self.per_minute), self.level(now_s) - amount)
        self._at_s = now_s

    def resize(self, per_minute: int, now_s: float) -> None:
        """Allow another amount from now on; what was used stays used."""
        used = self.per_minute - self.level(now_s)
        self.per_minute = per_minute
        self._level = per_minute - used
        self._at_s = now_s
