"""Where the end of a text stood before: the longest match among the latest places that share its last two tokens.

The structure is the hash table of LZ77 compressors (RFC 1951, section 4), with pairs of tokens for triples of bytes:
constant time for a new token and a bounded search. 32k tokens are indexed in about ten milliseconds, once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

MAX_MATCH = 16
"""Longer matches are not told apart: their next token was right 99 times of 100 at 16 (`benches/speculation.py`)."""
_PAIR = 2
"""Shortest match; one token alone is followed by the same one too seldom."""
_MAX_CANDIDATES = 32
"""Earlier places that are compared, so that a frequent pair such as a line's end costs no more than others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An earlier place that looks like the end of the text."""

    end: int
    """Position after the matched tokens: the token there followed them."""
    length: int
    """Tokens that are equal, counted backwards, 2 to `MAX_MATCH`."""


class SuffixIndex:
    """The tokens of one sequence, and where each pair of neighbours stands."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        """Index a prompt."""
        self._token_ids = list(token_ids)
        self._ends: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        """For each pair the positions after it, in order."""
        for end, pair in enumerate(pairwise(self._token_ids), start=_PAIR):
            self._ends[pair].append(end)

    def append(self, token_id: int) -> None:
        """Add a token to the text."""
        if self._token_ids:
            self._ends[self._token_ids[-1], token_id].append(len(self._token_ids) + 1)
        self._token_ids.append(token_id)

    def longest_match(self) -> Match | None:
        """Return the earlier place that shares most of the last tokens, the latest of equals; None if no pair does."""
        if len(self._token_ids) <= _PAIR:
            return None
        best: Match | None = None
        ends = self._ends[self._token_ids[-2], self._token_ids[-1]]
        for end in islice(reversed(ends), 1, 1 + _MAX_CANDIDATES):  # the first is the end of the text itself
            length = self._common_suffix(end)
            if best is None or length > best.length:
                best = Match(end=end, length=length)
            if length == MAX_MATCH:
                break
        return best

    def continuation(self, start: int, count: int) -> list[int]:
        """Return `count` tokens from a position on; at the end of the text they go on with themselves, as a loop."""
        found = self._token_ids[start : start + count]
        while len(found) < count:
            found.extend(found[: count - len(found)])
        return found

    def _common_suffix(self, end: int) -> int:
        """Return how many tokens before `end` equal the last of the text; the pair is known to."""
        token_ids = self._token_ids
        limit = min(end, MAX_MATCH)
        length = _PAIR
        while length < limit and token_ids[end - length - 1] == token_ids[-length - 1]:
            length += 1
        return length
