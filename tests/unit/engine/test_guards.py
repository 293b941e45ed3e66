"""The end of endless repetition: exactly when the last tokens are one short cycle, and never before."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.toy import VOCABULARY, ToyTokenizer

from qwenstack.core.errors import ConfigError
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.guards import MAX_PERIOD, RepetitionGuard

WINDOW = 2 * MAX_PERIOD


def only_repeats(tokens: bytes, window: int) -> bool:
    """Say by the definition whether the last tokens are one cycle."""
    last = tokens[-window:]
    return len(last) == window and any(last == (last[:period] * window)[:window] for period in range(1, MAX_PERIOD + 1))


cycles = st.lists(st.integers(0, 3), min_size=1, max_size=MAX_PERIOD + 3)
parts = st.lists(st.tuples(cycles, st.integers(1, 300)), min_size=1, max_size=4)


@settings(deadline=None)
@given(parts)
@example([(list(range(MAX_PERIOD)), 300), ([7], 1), (list(range(MAX_PERIOD + 1)), 300)])
def test_it_notices_what_the_definition_says_at_every_token(parts: list[tuple[list[int], int]]) -> None:
    tokens = bytes(token for cycle, length in parts for token in (cycle * length)[:length])
    guard = RepetitionGuard(WINDOW)
    for count, token in enumerate(tokens, start=1):
        assert guard.push(token) == only_repeats(tokens[:count], WINDOW), count


def test_the_longest_cycle_is_noticed_and_a_longer_one_is_not() -> None:
    for period, is_noticed in ((MAX_PERIOD, True), (MAX_PERIOD + 1, False)):
        guard = RepetitionGuard(1024)
        answers = {guard.push(at % period) for at in range(4096)}
        assert (True in answers) is is_noticed


def test_it_remembers_no_more_than_the_longest_cycle() -> None:
    guard = RepetitionGuard(1024)
    for token in range(10_000):
        guard.push(token)
    assert len(guard._places) == len(guard._recent) == MAX_PERIOD


def answer_of(tokens: list[int], params: SamplingParams, window: int) -> tuple[int, object, object]:
    answer = AnswerStream(ToyTokenizer(), params, max_tokens=5000, repetition_window=window)
    num_released = 0
    for token in tokens:
        release = answer.push(token, None)
        num_released += len(release.token_ids)
        if release.finish_reason is not None:
            return num_released, release.finish_reason, release.stop_reason
    return num_released, None, None


def test_an_answer_that_repeats_itself_ends_as_too_long_and_keeps_every_token() -> None:
    tokens = [5, 9, 5] + [1, 2] * 600
    params = SamplingParams(max_tokens=None)
    assert answer_of(tokens, params, 1024) == (3 + 1024, "length", "repetition")
    assert answer_of([VOCABULARY - 2] * 1024, params, 1024) == (1024, "length", "repetition"), "tokens without text"


def test_whoever_asks_for_no_end_gets_none() -> None:
    tokens = [1, 2] * 600
    assert answer_of(tokens, SamplingParams(max_tokens=None, ignore_eos=True), 1024) == (1200, None, None)
    assert answer_of(tokens, SamplingParams(max_tokens=None), 0) == (1200, None, None)


@pytest.mark.parametrize("window", [1, WINDOW - 1, (1 << 20) + 1])
def test_a_window_that_no_cycle_fits_into_is_refused(window: int) -> None:
    with pytest.raises(ConfigError, match="repetition_window"):
        EngineConfig(model_path=Path("m"), model_name="m", repetition_window=window)
