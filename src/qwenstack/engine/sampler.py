"""From logits to a token: a chain of pure functions over one row.

The order is vLLM's: logit bias and forbidden tokens, penalties, temperature, min-p, top-k, top-p. Randomness is a pure
function of (seed, answer, position), so that a token does not depend on what else is in the batch, on preemption or
on speculation. Log-probabilities are of the model's own distribution, before any of this.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from qwenstack.core.outputs import TokenLogprob
from qwenstack.core.sampling_params import SamplingParams

_GREEDY_BELOW = 1e-5
"""A division by less overflows float32, and the likeliest token is certain long before."""
_MOST_ASKED = 64
"""Up to this `top_k` tokens are asked about one by one: 64 x 14 us in the grammar of Python, whose mask takes 9 ms."""
_MORE_ASKED = 8
"""Forbidden ones among the likeliest that are passed over before the mask is made."""
_ROUNDING = 1e-5
"""Of a float32 logit, relative, and some more: candidates for min-p are taken from a little below."""
_NUCLEUS_SIZES = (64, 1024, 16384)
"""Candidates sorted one after the other when looking for the nucleus, before the whole row is."""
_BLOCK = 64
"""Logits, far from each other, whose largest one stands for them when looking for the likeliest: 0.05 ms for Qwen's
151,936 in the place of 0.7 ms for numpy's partition of them all (AMD EPYC, `benches/sampler.py`)."""
_LEAST = float(np.finfo(np.float32).min)
"""What is below is minus infinity: forbidden."""


@dataclass(slots=True)
class TokenHistory:
    """What the penalties need to know: which tokens the prompt holds, and how often each was generated."""

    prompt_ids: np.ndarray
    """Distinct ids of the prompt, int64, ascending."""
    counts: dict[int, int] = field(default_factory=dict[int, int])
    _only_generated: list[int] = field(default_factory=list[int])

    def add(self, token_id: int) -> None:
        """Count a generated token."""
        if token_id not in self.counts and not self._is_in_prompt(token_id):
            self._only_generated.append(token_id)
        self.counts[token_id] = self.counts.get(token_id, 0) + 1

    def seen_ids(self) -> np.ndarray:
        """Return the distinct ids of prompt and answer, int64, in no order."""
        return np.concatenate([self.prompt_ids, np.asarray(self._only_generated, np.int64)])

    def _is_in_prompt(self, token_id: int) -> bool:
        at = np.searchsorted(self.prompt_ids, token_id)
        return bool(at < len(self.prompt_ids) and self.prompt_ids[at] == token_id)


class Restriction(Protocol):
    """What a grammar allows next. To ask about one token takes microseconds, to mask all of them up to milliseconds."""

    def allows(self, token_id: int) -> bool:
        """Whether this token may come."""
        ...

    def mask(self, logits_V: np.ndarray) -> np.ndarray:
        """Return a copy with minus infinity for each token that may not."""
        ...


def choose_token(
    logits_V: np.ndarray,
    params: SamplingParams,
    history: TokenHistory,
    *,
    forbidden_ids: Sequence[int],
    uniform: float,
    restriction: Restriction | None = None,
) -> int:
    """Return the next token.

    Shapes: `logits_V` `[V]` float32, read only, without padding rows.

    Args:
        logits_V: the model's logits.
        params: the request's choices.
        history: for the penalties.
        forbidden_ids: ids that must not come, such as end tokens before `min_tokens`.
        uniform: a number in [0, 1) that decides; not used at temperature 0.
        restriction: what else must not come; the result is as if those tokens' logits were minus infinity.

    Raises:
        ArithmeticError: no token may come.
    """
    logits_V = _with_bias(logits_V, params.logit_bias, forbidden_ids)
    logits_V = _with_penalties(logits_V, params, history)
    top_k = 1 if params.temperature < _GREEDY_BELOW else params.top_k
    if restriction is not None:
        logits_V = _likeliest_allowed(logits_V, top_k, restriction)
    best = int(logits_V.argmax())
    if not np.isfinite(logits_V[best]):
        raise ArithmeticError("Everything that may come next is forbidden.")
    return best if top_k == 1 else _draw(logits_V, logits_V[best], params, uniform)


def uniform_number(seed: int, index: int, position: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(struct.pack("<qii", seed, index, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def token_logprob(logits_V: np.ndarray, token_id: int, num_top: int) -> TokenLogprob:
    """Return a token's log-probability and those of the `num_top` likeliest, ties by id."""
    shifted_V = logits_V - logits_V.max()
    log_sum = np.log(np.exp(shifted_V).sum(dtype=np.float64))
    top = [(token, float(shifted_V[token] - log_sum)) for token in likeliest(logits_V, num_top).tolist()]
    return TokenLogprob(token_id=token_id, logprob=float(shifted_V[token_id] - log_sum), top=tuple(top))


def _with_bias(logits_V: np.ndarray, bias: Mapping[int, float], forbidden_ids: Sequence[int]) -> np.ndarray:
    if not bias and not forbidden_ids:
        return logits_V
    logits_V = logits_V.copy()
    for token_id, value in bias.items():
        logits_V[token_id] += value
    if forbidden_ids:
        logits_V[np.asarray(forbidden_ids)] = -np.inf
    return logits_V


def _with_penalties(logits_V: np.ndarray, params: SamplingParams, history: TokenHistory) -> np.ndarray:
    repeats = params.repetition_penalty != 1.0
    if not repeats and not params.presence_penalty and not params.frequency_penalty:
        return logits_V
    logits_V = logits_V.copy()
    ids = np.fromiter(history.counts.keys(), np.int64, len(history.counts))
    counts = np.fromiter(history.counts.values(), np.float32, len(history.counts))
    if repeats:
        seen = history.seen_ids()
        values = logits_V[seen]
        penalty = np.float32(params.repetition_penalty)
        logits_V[seen] = np.where(values > 0, values / penalty, values * penalty)
    logits_V[ids] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts
    return logits_V


def _likeliest_allowed(logits_V: np.ndarray, top_k: int, restriction: Restriction) -> np.ndarray:
    """Return logits of which only allowed tokens are left, at least the `top_k` likeliest of them; all where it is 0.

    Nearly always the likeliest tokens are allowed, so that asking about a few spares the mask.
    """
    if not 0 < top_k <= _MOST_ASKED:
        return restriction.mask(logits_V)
    allowed: list[int] = []
    for token_id in likeliest(logits_V, top_k + _MORE_ASKED).tolist():
        if restriction.allows(token_id):
            allowed.append(token_id)
            if len(allowed) == top_k:
                kept_V = np.full_like(logits_V, -np.inf)
                kept_V[allowed] = logits_V[allowed]
                return kept_V
    return restriction.mask(logits_V)


def _draw(logits_V: np.ndarray, peak: np.float32, params: SamplingParams, uniform: float) -> int:
    """Sample by inverting the cumulative distribution of what the filters leave, likeliest first, or of all ids."""
    if params.top_k:
        ids = likeliest(logits_V, params.top_k)
    elif params.min_p > 0.0:
        floor = float(peak) + params.temperature * math.log(params.min_p)
        ids = _sorted_from(logits_V, floor - _ROUNDING * (1.0 + abs(floor)))
    else:
        weights_V = np.exp((logits_V - peak) / np.float32(params.temperature))
        if params.top_p == 1.0:
            return _invert(weights_V, uniform)
        ids = _nucleus(logits_V, weights_V, params.top_p)
        return int(ids[_invert(weights_V[ids], uniform)])
    weights = np.exp((logits_V[ids] - peak) / params.temperature, dtype=np.float64)
    weights = weights[: np.count_nonzero(weights >= params.min_p)]
    weights = weights[: _num_in_nucleus(weights, params.top_p * weights.sum())]
    return int(ids[_invert(weights, uniform)])


def _nucleus(logits_V: np.ndarray, weights_V: np.ndarray, top_p: float) -> np.ndarray:
    """Return the fewest of the likeliest ids that have `top_p` of the whole weight."""
    mass = top_p * weights_V.sum(dtype=np.float64)
    for size in _NUCLEUS_SIZES:
        ids = likeliest(logits_V, size)
        count = _num_in_nucleus(weights_V[ids], mass)
        if count < len(ids):
            return ids[:count]
    ids = likeliest(logits_V, len(logits_V))
    return ids[: _num_in_nucleus(weights_V[ids], mass)]


def _num_in_nucleus(weights: np.ndarray, mass: float) -> int:
    below = np.count_nonzero(np.cumsum(weights, dtype=np.float64) < mass)
    return min(int(below) + 1, len(weights))


def _invert(weights: np.ndarray, uniform: float) -> int:
    """Return the index at which the cumulative weight passes the share `uniform` of the whole."""
    size = len(weights)
    starts = np.arange(0, size, _BLOCK * _BLOCK)
    before = np.concatenate([[0.0], np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))])
    value = min(uniform * before[-1], np.nextafter(before[-1], 0.0))
    block = _first_above(before[1:-1], value)
    start = block * _BLOCK * _BLOCK
    inside = before[block] + np.cumsum(weights[start : start + _BLOCK * _BLOCK], dtype=np.float64)
    # Sums in another order may end a rounding below the value: then the last index with any weight.
    return start + min(_first_above(inside, value), _first_above(inside, np.nextafter(inside[-1], 0.0)))


def _first_above(cumulative: np.ndarray, value: float) -> int:
    return int(np.searchsorted(cumulative, value, side="right"))


def likeliest(logits_V: np.ndarray, count: int) -> np.ndarray:
    """Return the ids of the `count` largest logits in descending order, equal ones by id; no forbidden ones.

    Shapes: `logits_V` `[V]` float32, minus infinity where forbidden; result at most `[count]` int64.
    """
    if count <= 0:
        return np.empty(0, np.int64)
    whole = len(logits_V) // _BLOCK * _BLOCK
    # At least `count` logits are as large as the count-th largest of these maxima: each is one.
    maxima = np.concatenate([logits_V[:whole].reshape(_BLOCK, -1).max(axis=0), logits_V[whole:]])
    floor = -math.inf if count > len(maxima) else float(np.partition(maxima, len(maxima) - count)[-count])
    return _sorted_from(logits_V, max(floor, _LEAST))[:count]


def _sorted_from(logits_V: np.ndarray, floor: float) -> np.ndarray:
    """Return the ids of the logits from `floor` on in descending order, equal ones by id."""
    ids = np.flatnonzero(logits_V >= np.float32(floor))
    return ids[np.argsort(-logits_V[ids], kind="stable")]
