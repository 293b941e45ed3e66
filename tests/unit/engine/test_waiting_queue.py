"""Who goes first, and that everybody goes at last."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy import toy_model

from qwenstack.core.errors import CapacityError
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.engine import Engine
from qwenstack.engine.waiting_queue import STEPS_PER_LEVEL, Place, ServedTokens, due_step, order_of_admission

LONG = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def place(key: int, *, due: int = 0, tenant: str = "") -> Place:
    return Place(key=key, rank=(due, key), tenant=tenant)


def order(places: list[Place], served: dict[str, int] | None = None, seats: dict[str, int] | None = None) -> list[int]:
    return [one.key for one in order_of_admission(places, served=served or {}, seats=seats or {})]


def test_those_go_first_who_are_due_first_then_those_who_came_first() -> None:
    assert order([place(3), place(1, due=500), place(2), place(4, due=-500)]) == [4, 2, 3, 1]


def test_a_level_of_priority_is_an_earlier_arrival() -> None:
    assert due_step(700, -1) < due_step(600, 0) < due_step(700, 0) < due_step(600, 1)
    assert due_step(700 + STEPS_PER_LEVEL, -1) == due_step(700, 0)


def test_tenants_take_turns_the_least_served_first() -> None:
    places = [*(place(key, tenant="many") for key in range(3)), place(7, tenant="few"), place(8, tenant="few")]
    assert order(places, {"many": 10, "few": 500}) == [0, 7, 1, 8, 2]
    assert order(places, {"many": 500, "few": 10}) == [7, 0, 8, 1, 2]


def test_of_tenants_served_alike_the_one_with_the_fewest_seats_goes_first() -> None:
    places = [place(0, tenant="many"), place(1, tenant="many"), place(7, tenant="one")]
    assert order(places, {"many": 10, "one": 10}, {"many": 8}) == [7, 0, 1]
    assert order(places, {"many": 9, "one": 10}, {"many": 8}) == [0, 7, 1]


@given(
    places=st.lists(
        st.builds(place, key=st.integers(0, 1000), due=st.integers(-2, 2), tenant=st.sampled_from("abc")),
        unique_by=lambda one: one.key,
    ),
    served=st.dictionaries(st.sampled_from("abc"), st.integers(0, 100)),
    seats=st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)),
)
@settings(deadline=None)
def test_nobody_is_lost_and_a_tenant_is_served_in_its_own_order(
    places: list[Place], served: dict[str, int], seats: dict[str, int]
) -> None:
    ordered = order_of_admission(places, served=served, seats=seats)
    assert sorted(one.key for one in ordered) == sorted(one.key for one in places)
    for tenant in "abc":
        own = [one.rank for one in ordered if one.tenant == tenant]
        assert own == sorted(own)
    for at in range(len(ordered)):  # in turns: nobody is two ahead of another who still waits
        counts = {tenant: sum(one.tenant == tenant for one in ordered[: at + 1]) for tenant in "abc"}
        waiting = {one.tenant for one in ordered[at + 1 :]}
        assert all(max(counts.values()) - counts[tenant] <= 1 for tenant in waiting)


def test_a_pause_is_no_credit_and_no_pardon() -> None:
    served = ServedTokens()
    served.arrive("old")
    served.charge("old", 1000)
    served.arrive("new")
    assert served.by_tenant == {"old": 1000, "new": 1000}
    served.charge("new", 5000)
    served.leave("new")
    served.arrive("new")
    assert served.by_tenant["new"] == 6000


def test_one_request_does_not_wait_behind_a_hundred_of_another_tenant() -> None:
    engine = Engine(toy_model(num_blocks=64, max_num_seqs=8, max_num_waiting=200))
    for number in range(100):
        engine.add_request(f"many-{number}", [number % 60] * 5, LONG, RequestOptions(tenant="many"))
    for _ in range(5):
        engine.step()
    engine.add_request("one", [7] * 5, LONG, RequestOptions(tenant="one"))
    assert any(delta.request_id == "one" for delta in engine.step()), "it takes a seat at once"


def test_a_patient_request_comes_before_urgent_ones_that_keep_coming() -> None:
    engine = Engine(toy_model(num_blocks=64, max_num_seqs=2, max_num_waiting=50))
    engine.add_request("patient", [1] * 5, LONG, RequestOptions(priority=1))
    done = False
    for step in range(3 * STEPS_PER_LEVEL):
        if step % 5 == 0 and engine.stats().num_requests_waiting < 10:
            engine.add_request(f"urgent-{step}", [step % 60] * 5, LONG)
        done = done or any(delta.request_id == "patient" and delta.finish_reason is not None for delta in engine.step())
    assert done


def test_seats_do_not_go_back_and_forth() -> None:
    engine = Engine(toy_model(num_blocks=240, max_model_len=600, max_num_seqs=2, max_num_waiting=20))
    long = SamplingParams(temperature=0, max_tokens=500, ignore_eos=True)
    for number in range(2):
        engine.add_request(f"x-{number}", [number] * 5, long, RequestOptions(tenant="x"))
    for _ in range(250):
        engine.step()
    engine.add_request(
        "y", [7] * 5, SamplingParams(temperature=0, max_tokens=200, ignore_eos=True), RequestOptions(tenant="y")
    )
    tokens = [sum(len(delta.token_ids) for delta in engine.step() if delta.request_id == "y") for _ in range(250)]
    assert sum(tokens) == 200
    assert engine.stats().num_preemptions == 1


def test_one_tenant_cannot_fill_the_waiting_room() -> None:
    engine = Engine(toy_model(num_blocks=64, max_num_seqs=1, max_num_waiting=8))
    for number in range(6):
        engine.add_request(f"many-{number}", [1], LONG, RequestOptions(tenant="many"))
    with pytest.raises(CapacityError, match="your answers"):
        engine.add_request("many-6", [1], LONG, RequestOptions(tenant="many"))
    engine.add_request("other", [1], LONG, RequestOptions(tenant="other"))


def test_answers_to_one_prompt_share_its_blocks() -> None:
    engine = Engine(toy_model(num_blocks=64, max_num_seqs=8))
    engine.add_request("a", list(range(40)), SamplingParams(temperature=1.0, seed=3, max_tokens=5, n=4))
    while engine.has_work:
        engine.step()
    stats = engine.stats()
    assert stats.prompt_tokens == 40 + 3 * 8, "the others compute the last block alone"
    assert stats.prefix_cache_hits == 3 * 32
