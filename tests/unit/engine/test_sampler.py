"""The sampler against distributions computed by hand, token by token, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.sampler import TokenHistory, choose_token, likeliest, token_logprob, uniform_number


def no_history() -> TokenHistory:
    return TokenHistory(np.array([], np.int64))


def choose(
    logits: np.ndarray, params: SamplingParams, uniform: float = 0.5, history: TokenHistory | None = None
) -> int:
    return choose_token(logits, params, history or no_history(), forbidden_ids=(), uniform=uniform)


def filtered_distribution(logits: np.ndarray, params: SamplingParams) -> dict[int, float]:
    """The distribution that vLLM documents, by the book: temperature, min-p, top-k, top-p."""
    exact = [math.exp((float(value) - float(logits.max())) / params.temperature) for value in logits]
    kept = {token: weight for token, weight in enumerate(exact) if weight >= params.min_p * max(exact)}
    ranked = sorted(kept, key=lambda token: (-kept[token], token))
    ranked = ranked[: params.top_k or None]
    total = sum(kept[token] for token in ranked)
    nucleus: list[int] = []
    mass = 0.0
    for token in ranked:
        if mass >= params.top_p * total:
            break
        nucleus.append(token)
        mass += kept[token]
    return {token: kept[token] / mass for token in nucleus}


@settings(max_examples=40, deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40),
    temperature=st.floats(0.2, 2.0),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 12),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_samples_follow_the_filtered_distribution(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    row = np.array(logits, np.float32)
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    expected = filtered_distribution(row, params)
    grid = (np.arange(1000) + 0.5) / 1000
    drawn = [choose(row, params, float(uniform)) for uniform in grid]
    share = {token: drawn.count(token) / len(drawn) for token in set(drawn)}
    for token in set(share) | set(expected):
        # a boundary token may fall to either side of top-p by rounding; it then has the smallest share
        assert abs(share.get(token, 0.0) - expected.get(token, 0.0)) <= 0.005 or min(
            expected.values()
        ) == pytest.approx(expected.get(token, min(expected.values())), abs=1e-4)


def test_a_wide_nucleus_is_found_beyond_the_first_candidates() -> None:
    row = np.zeros(5000, np.float32)
    drawn = {choose(row, SamplingParams(top_p=0.9), (at + 0.5) / 4500) for at in range(4500)}
    assert drawn == set(range(4500))


@given(
    size=st.sampled_from([1, 63, 64, 65, 1000, 9001]),
    count=st.integers(0, 1100),
    num_values=st.sampled_from([1, 3, 50, 10_000]),
    share_forbidden=st.sampled_from([0.0, 0.5, 0.999, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_the_likeliest_are_those_of_a_whole_sort(
    size: int, count: int, num_values: int, share_forbidden: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    row = rng.integers(-num_values, num_values, size).astype(np.float32)
    row[rng.random(size) < share_forbidden] = -np.inf
    ranked = np.argsort(-row, kind="stable")
    assert likeliest(row, count).tolist() == ranked[row[ranked] > -np.inf][:count].tolist()


def test_without_filters_a_large_vocabulary_is_drawn_from_by_id() -> None:
    row = np.random.default_rng(1).normal(scale=3, size=10_000).astype(np.float32)
    row[[0, 4096, 9_999]] = -np.inf
    cumulative = np.cumsum(np.exp(row.astype(np.float64)))
    for uniform in [0.0, *np.random.default_rng(2).random(500), 1 - 2**-53]:
        token = choose(row, SamplingParams(temperature=1.0), float(uniform))
        assert row[token] > -np.inf
        # A weight is rounded to float32, so that a number near a boundary may fall to its other side.
        share = cumulative / cumulative[-1]
        assert share[token] - np.exp(row[token]) / cumulative[-1] - 1e-6 <= uniform <= share[token] + 1e-6


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    assert choose(np.array([1.0, 3.0, 3.0], np.float32), SamplingParams(temperature=0)) == 1


@given(temperature=st.floats(0, 2), top_p=st.sampled_from([1.0, 0.9]), uniform=st.floats(0, 1, exclude_max=True))
def test_every_permitted_temperature_gives_a_token_of_the_vocabulary(
    temperature: float, top_p: float, uniform: float
) -> None:
    row = np.random.default_rng(4).normal(scale=20, size=30).astype(np.float32)
    token = choose(row, SamplingParams(temperature=temperature, top_p=top_p), uniform)
    assert 0 <= token < 30
    assert temperature > 1e-5 or token == int(row.argmax())


def test_penalties_are_those_of_the_definitions() -> None:
    history = TokenHistory(np.array([0, 3], np.int64))
    for token in (1, 1, 2):
        history.add(token)
    row = np.array([2.0, 2.5, -1.0, -0.5, 1.1], np.float32)
    params = SamplingParams(temperature=0, repetition_penalty=2.0, presence_penalty=0.1, frequency_penalty=0.2)
    expected = np.array([2 / 2, 2.5 / 2 - 0.1 - 0.4, -1 * 2 - 0.1 - 0.2, -0.5 * 2, 1.1])
    ranked: list[int] = []
    for _ in range(5):
        token = choose_token(row, params, history, forbidden_ids=ranked, uniform=0.0)
        ranked.append(token)
    assert ranked == list(np.argsort(-expected))


def test_bias_forbids_and_forces() -> None:
    row = np.array([5.0, 0.0, 1.0], np.float32)
    assert choose(row, SamplingParams(temperature=0, logit_bias={0: -100.0})) == 2
    assert choose(row, SamplingParams(temperature=0, logit_bias={1: 100.0})) == 1
    assert row.tolist() == [5.0, 0.0, 1.0]


def test_logprobs_are_of_the_plain_distribution() -> None:
    row = np.array([0.5, 2.0, -1.0, 2.0], np.float32)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    scored = token_logprob(row, 0, 3)
    assert scored.logprob == pytest.approx(exact[0], abs=1e-6)
    assert [token for token, _ in scored.top] == [1, 3, 0]
    assert [value for _, value in scored.top] == pytest.approx([exact[1], exact[3], exact[0]], abs=1e-6)


def test_random_numbers_depend_on_seed_answer_and_position_only() -> None:
    numbers = [
        uniform_number(seed, index, position) for seed in range(20) for index in range(5) for position in range(20)
    ]
    assert len(set(numbers)) == len(numbers)
    assert 0.0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1.0
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.02
    assert uniform_number(-5, 0, 3) == uniform_number(-5, 0, 3)


class SomeAllowed:
    """A restriction that remembers whether it was asked for the whole mask."""

    def __init__(self, allowed: set[int]) -> None:
        self.allowed = allowed
        self.num_masks = 0

    def allows(self, token_id: int) -> bool:
        return token_id in self.allowed

    def mask(self, logits_V: np.ndarray) -> np.ndarray:
        self.num_masks += 1
        masked_V = np.full_like(logits_V, -np.inf)
        masked_V[sorted(self.allowed)] = logits_V[sorted(self.allowed)]
        return masked_V


@given(
    logits=arrays(np.float32, 40, elements=st.floats(-5, 5, width=32)),
    allowed=st.sets(st.integers(0, 39), min_size=1),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 20]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    uniform=st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None, max_examples=300)
def test_asking_about_a_few_tokens_gives_what_a_mask_from_the_start_gives(
    logits: np.ndarray,
    allowed: set[int],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    history = TokenHistory(np.array([], np.int64))
    restriction = SomeAllowed(allowed)
    masked = SomeAllowed(allowed).mask(logits)
    expected = choose_token(masked, params, history, forbidden_ids=(), uniform=uniform)
    found = choose_token(logits, params, history, forbidden_ids=(), uniform=uniform, restriction=restriction)
    assert found == expected
    assert found in allowed


def test_the_mask_is_not_made_where_the_likeliest_tokens_are_allowed() -> None:
    logits = np.arange(40, dtype=np.float32)
    restriction = SomeAllowed(set(range(30, 40)))
    history = TokenHistory(np.array([], np.int64))
    for params in (SamplingParams(temperature=0), SamplingParams(top_k=5, top_p=0.9)):
        choose_token(logits, params, history, forbidden_ids=(), uniform=0.5, restriction=restriction)
    assert restriction.num_masks == 0


@given(st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(0, 9), max_size=12))
def test_each_token_of_prompt_and_answer_is_seen_once(prompt: list[int], answer: list[int]) -> None:
    history = TokenHistory(np.unique(np.array(prompt, np.int64)))
    for token in answer:
        history.add(token)
    assert sorted(history.seen_ids().tolist()) == sorted({*prompt, *answer})


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=3, min_p=0.1)]
)
def test_where_nothing_may_come_the_request_fails(params: SamplingParams) -> None:
    with pytest.raises(ArithmeticError, match="forbidden"):
        choose_token(np.zeros(3, np.float32), params, no_history(), forbidden_ids=(0, 1, 2), uniform=0.5)
