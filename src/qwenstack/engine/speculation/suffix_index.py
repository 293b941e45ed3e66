"""Where the end of a text stood before: the longest match among the latest places that share its last two tokens.

The structure is the hash chain of LZ77 compressors (RFC 1951, section 4), with pairs of tokens for triples of bytes:
constant time for a new token and a bounded search. 32k tokens are indexed in about ten milliseconds, once, and take
less than a megabyte.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

MAX_MATCH = 16
"""Longer matches are not told apart: their next token was right 99 times of 100 at 16 (`benches/speculation.py`)."""
_PAIR = 2
"""Shortest match; one token alone is followed by the same one too seldom."""
_MAX_CANDIDATES = 32
"""Earlier places that are compared, so that a frequent pair such as a line's end costs no more than others."""
_NOWHERE = 0
"""Ends a chain; no pair ends there."""
_LEAST_CHAINS = 1 << 10
_MULTIPLIER = 0x9E3779B1
"""2^32 divided by the golden ratio: neighbouring ids go to chains far apart. Knuth, volume 3, section 6.4."""


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
        self._token_ids = array("i")
        num_chains = max(_LEAST_CHAINS, 1 << (2 * len(token_ids)).bit_length())
        self._mask = num_chains - 1
        self._latest = array("i", bytes(4 * num_chains))
        """For each chain the latest end of a pair in it: the position after the pair."""
        self._previous = array("i")
        """For each position the end before it in the chain of the pair that ends here."""
        for token_id in token_ids:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Add a token to the text."""
        token_ids = self._token_ids
        token_ids.append(token_id)
        end = len(token_ids)
        if end < _PAIR:
            self._previous.append(_NOWHERE)
            return
        chain = self._chain_of(token_ids[-2], token_id)
        self._previous.append(self._latest[chain])
        self._latest[chain] = end

    def longest_match(self) -> Match | None:
        """Return the earlier place that shares most of the last tokens, the latest of equals; None if no pair does."""
        best: Match | None = None
        for end in islice(self._earlier_ends(), _MAX_CANDIDATES):
            length = self._common_suffix(end)
            if length >= _PAIR and (best is None or length > best.length):
                best = Match(end=end, length=length)
            if length == MAX_MATCH:
                break
        return best

    def continuation(self, start: int, count: int) -> list[int]:
        """Return `count` tokens from a position on; at the end of the text they go on with themselves, as a loop."""
        found = self._token_ids[start : start + count].tolist()
        while len(found) < count:
            found.extend(found[: count - len(found)])
        return found

    def _chain_of(self, first: int, second: int) -> int:
        return ((first * _MULTIPLIER ^ second) * _MULTIPLIER >> 15) & self._mask

    def _earlier_ends(self) -> Iterator[int]:
        """Yield where the text's last pair stood before, the latest first, and the pairs that share its chain."""
        end = self._previous[-1] if self._previous else _NOWHERE
        while end != _NOWHERE:
            yield end
            end = self._previous[end - 1]

    def _common_suffix(self, end: int) -> int:
        """Return how many tokens before `end` equal the last of the text, at most `MAX_MATCH`."""
        token_ids = self._token_ids
        limit = min(end, MAX_MATCH)
        length = 0
        while length < limit and token_ids[end - length - 1] == token_ids[-length - 1]:
            length += 1
        return length
