"""The plan as a value: what it may never do in any state, and what it does in cases worked out by hand."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.engine.scheduler import Plan, SequenceView, blocks_for, plan

BLOCK = 8


def view(key: int, tokens: int, computed: int = 0, blocks: int | None = None) -> SequenceView:
    held = blocks_for(computed, BLOCK) if blocks is None else blocks
    return SequenceView(key=key, num_tokens=tokens, num_computed_tokens=computed, num_blocks=held)


def decide(
    running: list[SequenceView], waiting: list[SequenceView], *, free: int = 100, budget: int = 64, seats: int = 16
) -> Plan:
    return plan(running, waiting, num_free_blocks=free, block_size=BLOCK, token_budget=budget, max_num_seqs=seats)


def tokens_of(decision: Plan) -> dict[int, int]:
    return {chunk.key: chunk.num_tokens for chunk in decision.chunks}


def test_decoding_comes_before_an_older_prompt() -> None:
    decision = decide([view(0, 200, computed=64), view(1, 11, computed=10)], [], budget=32)
    assert tokens_of(decision) == {1: 1, 0: 31}


def test_a_long_prompt_is_read_in_pieces_of_the_budget() -> None:
    assert tokens_of(decide([], [view(0, 1000)], free=200)) == {0: 64}


def test_the_queue_is_served_in_order_and_a_prompt_that_does_not_fit_holds_the_rest_back() -> None:
    decision = decide([], [view(0, 8), view(1, 800), view(2, 8)], free=20)
    assert decision.admitted == (0,)


def test_prompts_still_being_read_keep_the_blocks_they_will_need() -> None:
    half_read = view(0, 160, computed=80)
    assert decide([half_read], [view(1, 40)], free=12, budget=16).admitted == ()
    assert decide([half_read], [view(1, 40)], free=30, budget=120).admitted == (1,)


def test_the_youngest_gives_its_blocks_to_the_oldest() -> None:
    running = [view(key, 17, computed=16) for key in range(3)]
    decision = decide(running, [view(9, 4)], free=0)
    assert decision.preempted == (2,)
    assert tokens_of(decision) == {0: 1, 1: 1}
    assert decision.admitted == ()


@st.composite
def states(draw: st.DrawFn) -> tuple[list[SequenceView], list[SequenceView], int, int, int]:
    running: list[SequenceView] = []
    for key in range(draw(st.integers(0, 8))):
        tokens = draw(st.integers(1, 120))
        computed = draw(st.one_of(st.just(tokens - 1), st.integers(0, tokens - 1)))
        running.append(view(key, tokens, computed))
    waiting = [view(100 + at, draw(st.integers(1, 120))) for at in range(draw(st.integers(0, 6)))]
    free = draw(st.integers(0, 40))
    return running, waiting, free, draw(st.integers(1, 64)), draw(st.integers(max(len(running), 1), 12))


@settings(max_examples=200, deadline=None)
@given(states())
def test_a_plan_keeps_every_limit(state: tuple[list[SequenceView], list[SequenceView], int, int, int]) -> None:
    running, waiting, free, budget, seats = state
    decision = decide(running, waiting, free=free, budget=budget, seats=seats)
    views = {item.key: item for item in [*running, *waiting]}
    assert sum(chunk.num_tokens for chunk in decision.chunks) <= budget
    regained = sum(views[key].num_blocks for key in decision.preempted)
    assert sum(chunk.num_new_blocks for chunk in decision.chunks) <= free + regained
    assert len(running) - len(decision.preempted) + len(decision.admitted) <= seats
    assert [item.key for item in waiting[: len(decision.admitted)]] == list(decision.admitted)
    keys = [chunk.key for chunk in decision.chunks]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & set(decision.preempted)
    for chunk in decision.chunks:
        item = views[chunk.key]
        end = item.num_computed_tokens + chunk.num_tokens
        assert chunk.num_tokens >= 1
        assert end <= item.num_tokens
        assert item.num_blocks + chunk.num_new_blocks == blocks_for(end, BLOCK)


@settings(max_examples=200, deadline=None)
@given(states())
def test_somebody_always_moves_when_blocks_can_be_had(
    state: tuple[list[SequenceView], list[SequenceView], int, int, int],
) -> None:
    running, waiting, free, budget, seats = state
    total = free + sum(item.num_blocks for item in running)
    fits = [item for item in running if blocks_for(item.num_tokens, BLOCK) <= total]
    if len(fits) == len(running) and running:
        assert decide(running, waiting, free=free, budget=budget, seats=seats).chunks
