"""A guard of one answer: the end of endless repetition."""

from __future__ import annotations

from collections import defaultdict, deque

MAX_PERIOD = 128
"""Longest cycle that is looked for, in tokens: a paragraph. A model that is stuck repeats a phrase or a line."""
REPETITION = "repetition"
"""The `stop_reason` of an answer that was ended, with the finish reason `length`."""


class RepetitionGuard:
    """Notices when the last `window` tokens of an answer are one cycle of at most `MAX_PERIOD` tokens, over and over.

    They have period p exactly when each of the newest `window - p` equals the one p places before it. The periods that
    the newest token goes on with are its distances to the same token before it; for each the guard knows how many
    tokens in a row have gone on with it. Text that does not repeat itself costs a look into a table.
    """

    def __init__(self, window: int) -> None:
        """Watch an answer from its first token.

        Args:
            window: tokens that must be one cycle, at least twice `MAX_PERIOD`; 0 notices nothing.
        """
        assert window == 0 or window >= 2 * MAX_PERIOD
        self._window = window
        self._num_tokens = 0
        self._recent: deque[int] = deque()
        """The last `MAX_PERIOD` tokens."""
        self._places: defaultdict[int, deque[int]] = defaultdict(deque)
        """Where each of them stands, by token."""
        self._run_lengths: dict[int, int] = {}
        """By period: how many tokens in a row, up to the newest, equal the one a period before."""

    def push(self, token_id: int) -> bool:
        """Take the next token and return whether the answer only repeats itself now."""
        if not self._window:
            return False
        places = self._places[token_id]
        periods = [self._num_tokens - place for place in places]
        self._run_lengths = {period: self._run_lengths.get(period, 0) + 1 for period in periods}
        places.append(self._num_tokens)
        self._recent.append(token_id)
        self._num_tokens += 1
        if len(self._recent) > MAX_PERIOD:
            self._forget(self._recent.popleft())
        return any(length + period >= self._window for period, length in self._run_lengths.items())

    def _forget(self, token_id: int) -> None:
        places = self._places[token_id]
        places.popleft()
        if not places:
            del self._places[token_id]
