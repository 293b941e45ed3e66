"""From logits to a token: a chain of pure functions over one row.

The order is vLLM's: logit bias and forbidden tokens, penalties, temperature, min-p, top-k, top-p. Randomness is a pure
function of (seed, answer, position), so that a token does not depend on what else is in the batch, on preemption or
on speculation. Log-probabilities are of the model's own distribution, before any of this.
"""

from __future__ import annotations

import hashlib
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
_TOP_P_CANDIDATES = 1024
"""Sorted first when looking for the nucleus; nearly always enough, else the whole row is sorted."""


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
    """
    logits_V = _with_bias(logits_V, params.logit_bias, forbidden_ids)
    logits_V = _with_penalties(logits_V, params, history)
    top_k = 1 if params.temperature < _GREEDY_BELOW else params.top_k
    if restriction is not None:
        logits_V = _likeliest_allowed(logits_V, top_k, restriction)
    if top_k == 1:
        return int(logits_V.argmax())
    return _draw(logits_V, params, uniform)


def uniform_number(seed: int, index: int, position: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(struct.pack("<qii", seed, index, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def token_logprob(logits_V: np.ndarray, token_id: int, num_top: int) -> TokenLogprob:
    """Return a token's log-probability and those of the `num_top` likeliest, ties by id."""
    shifted_V = logits_V - logits_V.max()
    log_sum = np.log(np.exp(shifted_V, dtype=np.float64).sum())
    top: list[tuple[int, float]] = []
    if num_top:
        count = min(num_top, len(shifted_V))
        candidates = np.argpartition(-shifted_V, count - 1)[:count]
        ordered = candidates[np.lexsort((candidates, -shifted_V[candidates]))]
        top = [(int(token), float(shifted_V[token] - log_sum)) for token in ordered]
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
    for token_id in _sorted_top(logits_V, min(top_k + _MORE_ASKED, len(logits_V))).tolist():
        if logits_V[token_id] == -np.inf:
            break
        if restriction.allows(token_id):
            allowed.append(token_id)
            if len(allowed) == top_k:
                kept_V = np.full_like(logits_V, -np.inf)
                kept_V[allowed] = logits_V[allowed]
                return kept_V
    return restriction.mask(logits_V)


def _draw(logits_V: np.ndarray, params: SamplingParams, uniform: float) -> int:
    """Sample by inverting the cumulative distribution over the tokens that the filters leave, likeliest first."""
    scaled_V = (logits_V - logits_V.max()) / np.float32(params.temperature)
    weights_V = np.exp(scaled_V, dtype=np.float64)
    if params.min_p > 0.0:
        weights_V[weights_V < params.min_p] = 0.0
    if not params.top_k and params.top_p == 1.0:
        cumulative = np.cumsum(weights_V)
        return _first_above(cumulative, uniform * cumulative[-1])
    ids = _likeliest(weights_V, params.top_k, params.top_p)
    cumulative = np.cumsum(weights_V[ids])
    return int(ids[_first_above(cumulative, uniform * cumulative[-1])])


def _first_above(cumulative: np.ndarray, value: np.float64) -> int:
    index: np.intp = np.searchsorted(cumulative, value, side="right")
    return int(index)


def _likeliest(weights_V: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Return the ids that top-k and then top-p leave, likeliest first, ties by id."""
    size = len(weights_V)
    count = min(top_k, size) if top_k else min(_TOP_P_CANDIDATES, size)
    ids = _sorted_top(weights_V, count)
    total = weights_V[ids].sum() if top_k else weights_V.sum()
    if not top_k and weights_V[ids].sum() < top_p * total:
        ids = _sorted_top(weights_V, size)
    if top_p < 1.0:
        cumulative = np.cumsum(weights_V[ids])
        ids = ids[: np.count_nonzero(cumulative < top_p * total) + 1]
    return ids[weights_V[ids] > 0.0]


def _sorted_top(weights_V: np.ndarray, count: int) -> np.ndarray:
    """Return the ids of the `count` largest weights in descending order; equal weights in order of id."""
    if count < len(weights_V):
        threshold = np.partition(weights_V, len(weights_V) - count)[len(weights_V) - count]
        ids = np.flatnonzero(weights_V >= threshold)
    else:
        ids = np.arange(len(weights_V))
    return ids[np.argsort(-weights_V[ids], kind="stable")][:count]
