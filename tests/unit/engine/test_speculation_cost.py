"""When drafts pay, and when they are given up."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.errors import ConfigError
from qwenstack.engine.speculation import StepCost, measure_step_cost
from qwenstack.engine.speculation.switch import Switch


@given(
    st.lists(st.floats(0.01, 0.999), max_size=12),
    st.integers(1, 64),
    st.floats(0.02, 1.0),
    st.integers(0, 12),
)
def test_no_other_length_gives_more_tokens_for_the_time(
    chances: list[float], num_running: int, per_row: float, limit: int
) -> None:
    cost = StepCost(per_row=per_row)

    def tokens_for_the_time(length: int) -> float:
        kept, tokens = 1.0, float(num_running)
        for chance in chances[:length]:
            kept *= chance
            tokens += kept
        return tokens / cost.of(num_running + length)

    length = cost.draft_length(chances, num_running=num_running, limit=limit)
    assert length <= min(limit, len(chances))
    best = max(tokens_for_the_time(other) for other in range(min(limit, len(chances)) + 1))
    assert tokens_for_the_time(length) == pytest.approx(best)


def test_a_crowd_makes_drafts_dear() -> None:
    cost = StepCost(per_row=0.3)
    lengths = [cost.draft_length([0.9] * 16, num_running=num_running, limit=16) for num_running in (1, 4, 64)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 2
    assert lengths[-1] == 0


@pytest.mark.parametrize("per_row", [0.0, -0.1, 1.5, float("nan")])
def test_a_row_that_costs_nothing_or_more_than_a_step_is_refused(per_row: float) -> None:
    with pytest.raises(ConfigError, match="per_row"):
        StepCost(per_row=per_row)


def test_the_cost_of_a_row_is_the_slope_of_the_fastest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    noise = iter([0.5, 0.0, 0.0, 0.7, 0.0, 0.9])

    class Model:
        def forward(self, batch: Any, _: object) -> Any:
            nonlocal now
            now += 1.0 + 0.25 * (len(batch.token_ids) - 1) + next(noise)
            return batch.token_ids

        def logits(self, rows: Any) -> Any:
            return rows

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert measure_step_cost(cast("Any", Model()), cast("Any", None)).per_row == pytest.approx(0.25)


def test_what_never_hits_is_off_within_32_tokens() -> None:
    switch, num_tokens = Switch(), 0
    while switch.is_on:
        switch = switch.after(1, 1.3)
        num_tokens += 1
    assert num_tokens <= 32


def test_steps_without_drafts_are_no_gain_either() -> None:
    switch = Switch()
    for _ in range(32):
        switch = switch.after(1, 1.0)
    assert not switch.is_on


def test_what_pays_stays_on_and_what_begins_to_pay_comes_back() -> None:
    switch = Switch()
    for _ in range(100):
        switch = switch.after(3, 1.6)
        assert switch.is_on
    while switch.is_on:
        switch = switch.after(1, 1.6)
    num_steps = 0
    while not switch.is_on:
        switch = switch.after(3, 1.6)
        num_steps += 1
    assert num_steps < 20


@given(st.lists(st.tuples(st.integers(1, 17), st.floats(1.0, 6.0)), max_size=60))
def test_turning_on_takes_more_than_staying_on(steps: list[tuple[int, float]]) -> None:
    switch = Switch()
    for num_tokens, cost in steps:
        before = switch
        switch = switch.after(num_tokens, cost)
        if before.is_on and not switch.is_on:
            assert switch.gain < 1.02
        if switch.is_on and not before.is_on:
            assert switch.gain >= 1.15
