"""The plan as a value: what it may never do in any state, and what it does in cases worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.engine.scheduler import RESTORED_BLOCKS_PER_STEP, Plan, RunningView, WaitingView, blocks_for, plan

BLOCK = 8


def running(
    key: int, tokens: int, computed: int = 0, *, drafts: int = 0, stored: int = 0, due: int = 0, tenant: str = ""
) -> RunningView:
    held = blocks_for(computed, BLOCK)
    return RunningView(
        key=key,
        rank=(due, key),
        tenant=tenant,
        num_tokens=tokens,
        num_computed_tokens=computed,
        num_blocks=held,
        num_own_blocks=held,
        num_stored_blocks=stored,
        num_drafts=drafts,
    )


def waiting(key: int, tokens: int, *, cached: int = 0, idle: int = 0, due: int = 0, tenant: str = "") -> WaitingView:
    return WaitingView(
        key=key,
        rank=(due, key),
        tenant=tenant,
        num_tokens=tokens,
        num_found_blocks=cached,
        num_idle_blocks=idle,
    )


def decide(
    seated: list[RunningView], queue: list[WaitingView], *, free: int = 100, budget: int = 64, seats: int = 16
) -> Plan:
    return plan(seated, queue, num_free_blocks=free, block_size=BLOCK, token_budget=budget, max_num_seqs=seats)


def tokens_of(decision: Plan) -> dict[int, int]:
    return {chunk.key: chunk.num_tokens for chunk in decision.chunks}


def drafts_of(decision: Plan) -> dict[int, int]:
    return {chunk.key: chunk.num_drafts for chunk in decision.chunks}


def test_decoding_comes_before_an_older_prompt() -> None:
    decision = decide([running(0, 200, computed=64), running(1, 11, computed=10)], [], budget=32)
    assert tokens_of(decision) == {1: 1, 0: 31}


def test_a_long_prompt_is_read_in_pieces_of_the_budget() -> None:
    assert tokens_of(decide([], [waiting(0, 1000)], free=200)) == {0: 64}


def test_the_queue_is_served_in_order_and_a_prompt_that_does_not_fit_holds_the_rest_back() -> None:
    assert decide([], [waiting(0, 8), waiting(1, 800), waiting(2, 8)], free=20).admitted == (0,)


def test_prompts_still_being_read_keep_the_blocks_they_will_need() -> None:
    half_read = running(0, 160, computed=80)
    assert decide([half_read], [waiting(1, 40)], free=12, budget=16).admitted == ()
    assert decide([half_read], [waiting(1, 40)], free=30, budget=120).admitted == (1,)


def test_the_youngest_gives_its_blocks_to_the_oldest() -> None:
    decision = decide([running(key, 17, computed=16) for key in range(3)], [waiting(9, 4)], free=0)
    assert decision.preempted == (2,)
    assert tokens_of(decision) == {0: 1, 1: 1}
    assert decision.admitted == ()


def test_the_least_urgent_gives_its_blocks_before_the_youngest() -> None:
    seated = [running(0, 17, computed=16, due=500), running(1, 17, computed=16), running(2, 17, computed=16)]
    assert decide(seated, [], free=0).preempted == (0,)


def test_what_is_found_in_the_cache_is_not_computed_and_costs_only_what_nobody_holds() -> None:
    decision = decide([], [waiting(0, 80, cached=9, idle=0)], free=2)
    assert tokens_of(decision) == {0: 8}
    assert decide([], [waiting(0, 80, cached=9, idle=9)], free=2).admitted == ()
    assert decide([], [waiting(0, 80, cached=9, idle=9)], free=11).admitted == (0,)


def test_drafts_take_no_token_from_anybody_who_decodes() -> None:
    seated = [running(0, 10, computed=9, drafts=8), *(running(key, 10, computed=9) for key in range(1, 6))]
    decision = decide(seated, [], budget=8)
    assert drafts_of(decision) == {0: 2, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0}


def test_drafts_take_no_block_from_anybody() -> None:
    seated = [running(0, 16, computed=15, drafts=8), running(1, 17, computed=16)]
    decision = decide(seated, [], free=1)
    assert drafts_of(decision) == {0: 0, 1: 0}
    assert decision.preempted == ()
    assert drafts_of(decide(seated, [], free=2))[0] == 8


def test_blocks_on_the_disk_are_read_before_the_rest_is_computed_some_a_step() -> None:
    decision = decide([running(0, 1000, computed=16, stored=100), running(1, 11, computed=10)], [], free=200)
    assert [(restore.key, restore.num_blocks) for restore in decision.restores] == [(0, RESTORED_BLOCKS_PER_STEP)]
    assert tokens_of(decision) == {1: 1}


def test_one_that_is_due_earlier_takes_a_seat() -> None:
    seated = [running(key, 11, computed=10, due=500 * key) for key in range(3)]
    decision = decide(seated, [waiting(9, 4, due=500)], seats=3)
    assert (decision.preempted, decision.admitted) == ((2,), (9,))
    assert decide(seated, [waiting(9, 4, due=1000)], seats=3).preempted == ()


def test_nobody_leaves_a_seat_for_one_that_does_not_fit() -> None:
    seated = [running(key, 11, computed=10, due=500 * key) for key in range(3)]
    assert decide(seated, [waiting(9, 400)], seats=3, free=10).preempted == ()


def test_blocks_that_the_one_who_leaves_held_are_not_counted_twice() -> None:
    sharer = running(1, 41, computed=40, due=500)
    candidate = waiting(9, 95, cached=5)
    assert decide([running(0, 41, computed=40), sharer], [candidate], seats=2, free=6).preempted == ()
    assert decide([running(0, 41, computed=40), sharer], [candidate], seats=2, free=8).admitted == (9,)


def test_a_tenant_without_a_seat_gets_one_of_the_tenant_with_most() -> None:
    seated = [*(running(key, 11, computed=10, tenant="many") for key in range(3)), running(3, 9, tenant="one")]
    decision = decide(seated, [waiting(9, 4, tenant="none")], seats=4)
    assert (decision.preempted, decision.admitted) == ((2,), (9,))


def test_a_seat_does_not_go_back_and_forth_between_tenants() -> None:
    seated = [running(0, 9, tenant="a"), running(1, 9, tenant="a"), running(2, 9, tenant="b")]
    assert decide(seated, [waiting(9, 4, tenant="b")], seats=3).preempted == ()
    assert decide(seated, [waiting(9, 4, tenant="a")], seats=3).preempted == ()


@dataclass(frozen=True)
class State:
    seated: list[RunningView]
    queue: list[WaitingView]
    free: int
    budget: int
    seats: int

    def decide(self) -> Plan:
        return decide(self.seated, self.queue, free=self.free, budget=self.budget, seats=self.seats)


@st.composite
def states(draw: st.DrawFn) -> State:
    tenants, due_steps = st.sampled_from(["a", "b"]), st.integers(-1, 1)
    seated: list[RunningView] = []
    for key in range(draw(st.integers(0, 8))):
        tokens = draw(st.integers(1, 120))
        computed = draw(st.one_of(st.just(tokens - 1), st.integers(0, tokens - 1)))
        drafts = draw(st.integers(0, 10)) if computed == tokens - 1 else 0
        on_disk = (tokens - 1 - computed) // BLOCK if computed % BLOCK == 0 else 0
        stored = draw(st.sampled_from([0, on_disk]))
        seated.append(
            running(
                key,
                tokens,
                computed,
                drafts=drafts,
                stored=stored,
                due=draw(due_steps),
                tenant=draw(tenants),
            )
        )
    queue: list[WaitingView] = []
    for at in range(draw(st.integers(0, 6))):
        tokens = draw(st.integers(1, 120))
        cached = draw(st.integers(0, (tokens - 1) // BLOCK))
        idle = draw(st.integers(0, cached))
        queue.append(waiting(100 + at, tokens, cached=cached, idle=idle, due=draw(due_steps), tenant=draw(tenants)))
    free = draw(st.integers(0, 40))
    seats = draw(st.integers(max(len(seated), 1), 12))
    return State(seated, queue, free, draw(st.integers(max(len(seated), 1), 64)), seats)


@settings(max_examples=300, deadline=None)
@given(states())
def test_a_plan_keeps_every_limit(state: State) -> None:
    decision = state.decide()
    views = {item.key: item for item in state.seated}
    sizes = {item.key: (item.num_tokens, item.num_computed_tokens, item.num_blocks) for item in state.seated}
    sizes |= {item.key: (item.num_tokens, item.num_found_blocks * BLOCK, item.num_found_blocks) for item in state.queue}
    assert sum(chunk.num_tokens + chunk.num_drafts for chunk in decision.chunks) <= state.budget
    regained = sum(views[key].num_own_blocks for key in decision.preempted)
    spent = sum(chunk.num_new_blocks for chunk in decision.chunks)
    spent += sum(restore.num_blocks for restore in decision.restores)
    waiting_views = {item.key: item for item in state.queue}
    spent += sum(waiting_views[key].num_idle_blocks for key in decision.admitted)
    assert spent <= state.free + regained
    assert len(state.seated) - len(decision.preempted) + len(decision.admitted) <= state.seats
    assert [item.key for item in state.queue[: len(decision.admitted)]] == list(decision.admitted)
    keys = [*(chunk.key for chunk in decision.chunks), *(restore.key for restore in decision.restores)]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & set(decision.preempted)
    for chunk in decision.chunks:
        num_tokens, num_computed, num_blocks = sizes[chunk.key]
        end = num_computed + chunk.num_tokens
        assert chunk.num_tokens >= 1
        assert end <= num_tokens
        assert chunk.num_drafts == 0 or end == num_tokens
        assert num_blocks + chunk.num_new_blocks == blocks_for(end + chunk.num_drafts, BLOCK)
    for restore in decision.restores:
        assert 1 <= restore.num_blocks <= views[restore.key].num_stored_blocks


@settings(max_examples=200, deadline=None)
@given(states())
def test_somebody_always_moves_when_blocks_can_be_had(state: State) -> None:
    total = state.free + sum(item.num_own_blocks for item in state.seated)
    if state.seated and all(blocks_for(item.num_tokens, BLOCK) <= total for item in state.seated):
        decision = state.decide()
        assert decision.chunks or decision.restores


@settings(max_examples=200, deadline=None)
@given(states())
def test_whoever_decodes_gets_a_token_unless_blocks_are_short(state: State) -> None:
    decision = state.decide()
    served = tokens_of(decision)
    if not decision.preempted and state.free >= sum(not item.is_prefill for item in state.seated):
        assert all(served.get(item.key) == 1 for item in state.seated if not item.is_prefill)
