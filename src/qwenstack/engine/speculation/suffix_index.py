"""Where the end of a text stood before: the longest match among the latest places that share its last two tokens.

The structure is the hash chain of LZ77 compressors (RFC 1951, section 4), with pairs of tokens for triples of bytes:
constant time for a new token, a bounded search for a match, and 32k tokens are indexed in about ten milliseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise


_MAX_CANDIDATES = 32
MAX_MATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An earlier place that looks like the end of the text."""

    end: int
    """Position after the matched tokens: the token there followed them."""
    length: int
    """Tokens that are equal, counted backwards, at most 16."""


class SuffixIndex:
    """The tokens of one sequence, and where each pair of neighbours stands."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self._ends: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for end, pair in enumerate(pairwise(self.tokens), start=2):
            self._ends[pair].append(end)

    def append(self, token: int) -> None:
        if self.tokens:
            self._ends[self.tokens[-1], token].append(len(self.tokens) + 1)
        self.tokens.append(token)

    def longest_match(self) -> Match | None:
        tokens = self.tokens
        if len(tokens) < 3:
            return None
        size = len(tokens)
        best = None
        best_length = 0
        for end in islice(reversed(self._ends.get((tokens[-2], tokens[-1]), ())), 1, 1 + _MAX_CANDIDATES):
            length = 2
            while length < MAX_MATCH and length < end and tokens[end - length - 1] == tokens[size - length - 1]:
                length += 1
            if length > best_length:
                best, best_length = end, length
                if length == MAX_MATCH:
                    break
        return None if best is None else Match(end=best, length=best_length)

    def continuation(self, start: int, count: int) -> list[int]:
        """Return what followed a match; where it runs into the end of the text, it goes on with itself, as a loop."""
        found = self.tokens[start : start + count]
        while len(found) < count:
            found.extend(found[: count - len(found)])
        return found
