"""Limits: what is let through, what is refused, and what is given back, against an exact model."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.limits import Limits, read_limits
from qwenstack.serving.bucket import Bucket
from qwenstack.serving.errors import RateLimitError
from qwenstack.serving.identity import Identity
from qwenstack.serving.limiter import MOST_IDLE_ACCOUNTS, Limiter, Reservation
from qwenstack.serving.usage import MemoryRecords, UsageLedger

TOLERANCE = Fraction(1, 10**6)
"""Of a token: the bucket counts in floating point, the model in fractions."""


class Clock:
    """A time that tests set."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def caller(name: str = "k", **limits: int) -> Identity:
    return Identity(tenant="t", key_id=name, accesses=frozenset(), limits=Limits(**limits))


def limiter(clock: Clock | None = None, wall: Clock | None = None, **defaults: int) -> Limiter:
    ledger = UsageLedger(MemoryRecords(), clock=wall or Clock())
    return Limiter(Limits(**defaults), ledger, clock=clock or Clock(), count_refusal=lambda _: None)


MILLISECONDS = st.integers(0, 200_000)


@settings(max_examples=200)
@given(st.integers(1, 1000), st.lists(st.tuples(MILLISECONDS, st.integers(0, 1000))))
def test_a_bucket_is_what_arithmetic_with_fractions_says(per_minute: int, takes: list[tuple[int, int]]) -> None:
    bucket, now_s = Bucket(per_minute, now_s=0.0), Fraction(0)
    level = Fraction(per_minute)
    for milliseconds, amount in takes:
        now_s += Fraction(milliseconds, 1000)
        level = min(Fraction(per_minute), level + Fraction(milliseconds, 1000) * per_minute / 60)
        wanted = min(amount, per_minute)
        wait_s = bucket.wait_s(wanted, float(now_s))
        exact_s = max(Fraction(0), wanted - level) * 60 / per_minute
        assert abs(Fraction(wait_s) - exact_s) < Fraction(1, 1000)
        bucket.take(amount, float(now_s))  # more than there is: the rest is owed
        level -= amount
        assert abs(Fraction(bucket.level(float(now_s))) - level) < TOLERANCE


def _refusal(work: Callable[[], None]) -> str | None:
    """Do it; return why it was refused."""
    try:
        work()
    except RateLimitError as error:
        return error.kind if error.retry_after_s > 0 else "refused, but may come back at once"
    except RequestError as error:
        return error.code
    return None


class LimiterAgainstModel(RuleBasedStateMachine):
    """One caller with every limit; the model adds up what happened."""

    LIMITS = Limits(requests_per_minute=6, tokens_per_minute=600, concurrent_requests=3, tokens_per_day=2000)

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.wall = Clock(), Clock(1000.0)
        self.ledger = UsageLedger(MemoryRecords(), clock=self.wall)
        self.limiter = Limiter(self.LIMITS, self.ledger, clock=self.clock, count_refusal=lambda _: None)
        self.caller = caller()
        self.requests, self.tokens = Fraction(6), Fraction(600)
        self.used_today = 0
        self.open: list[Reservation] = []

    @rule(milliseconds=MILLISECONDS)
    def wait(self, milliseconds: int) -> None:
        self.clock.now += milliseconds / 1000
        self.requests = min(Fraction(6), self.requests + Fraction(milliseconds, 1000) * 6 / 60)
        self.tokens = min(Fraction(600), self.tokens + Fraction(milliseconds, 1000) * 600 / 60)

    @rule()
    def midnight(self) -> None:
        self.wall.now += 86_400
        self.used_today = 0

    @rule()
    def request(self) -> None:
        if abs(self.requests - 1) < TOLERANCE:
            return  # floating point may round either way
        refused = _refusal(lambda: self.limiter.take_request(self.caller))
        assert refused == ("requests" if self.requests < 1 else None)
        self.requests -= refused is None

    @rule(prompt=st.integers(1, 300), answer=st.integers(1, 400))
    def begin(self, prompt: int, answer: int) -> None:
        demand = prompt + answer
        if abs(self.tokens - demand) < TOLERANCE:
            return
        reserved = sum(one.demand for one in self.open)
        refused = _refusal(
            lambda: self.open.append(self.limiter.reserve(self.caller, prompt_tokens=prompt, answer_tokens=answer))
        )
        if len(self.open) - (refused is None) >= 3:
            assert refused == "concurrency"
        elif self.used_today + reserved + demand > 2000:
            assert refused == "budget"
        elif demand > 600:
            assert refused == "request_too_large"
        elif self.tokens < demand:
            assert refused == "tokens"
        else:
            assert refused is None
            self.tokens -= demand

    @precondition(lambda self: self.open)
    @rule(data=st.data(), share=st.floats(0, 1.5))
    def end(self, data: st.DataObject, share: float) -> None:
        reservation = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        with reservation:
            reservation.prompt_tokens = min(1, int(reservation.demand * share))
            reservation.completion_tokens = int(reservation.demand * share) - reservation.prompt_tokens
        self.tokens = min(Fraction(600), self.tokens + reservation.demand - reservation.used)
        self.used_today += reservation.used

    @invariant()
    def the_headers_tell_what_is_left(self) -> None:
        told = dict(self.limiter.headers(self.caller))
        for name, level in ((b"requests", self.requests), (b"tokens", self.tokens)):
            left = int(told[b"x-ratelimit-remaining-" + name])
            assert max(Fraction(0), level) - 1 - TOLERANCE < left < max(Fraction(0), level) + TOLERANCE

    @invariant()
    def the_day_has_what_was_used(self) -> None:
        assert self.ledger.tokens_today(self.caller) == self.used_today


LimiterAgainstModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLimiterAgainstModel = LimiterAgainstModel.TestCase


def test_what_an_answer_did_not_need_is_given_back_however_it_ended() -> None:
    limits = limiter(tokens_per_minute=100, concurrent_requests=1)
    for error in (None, RuntimeError("the engine failed")):
        try:
            with limits.reserve(caller(), prompt_tokens=45, answer_tokens=50) as reservation:
                reservation.prompt_tokens = 5
                if error is not None:
                    raise error
        except RuntimeError:
            pass
    assert dict(limits.headers(caller()))[b"x-ratelimit-remaining-tokens"] == b"90"


def test_a_longer_answer_than_was_assumed_is_owed() -> None:
    clock = Clock()
    limits = limiter(clock, tokens_per_minute=60)
    with limits.reserve(caller(), prompt_tokens=10, answer_tokens=50) as reservation:
        reservation.completion_tokens = 120
    with pytest.raises(RateLimitError) as refused:
        limits.reserve(caller(), prompt_tokens=1, answer_tokens=1)
    assert refused.value.retry_after_s == pytest.approx(62)
    clock.now += refused.value.retry_after_s + 1e-6
    limits.reserve(caller(), prompt_tokens=1, answer_tokens=1)


def test_a_request_that_can_never_have_room_is_told_so_and_not_to_come_back() -> None:
    limits = limiter(tokens_per_minute=100)
    with pytest.raises(RequestError, match=r"500 tokens.*100 a minute.*ask for a shorter answer") as refused:
        limits.reserve(caller(), prompt_tokens=100, answer_tokens=400)
    assert not isinstance(refused.value, RateLimitError)


def test_callers_do_not_spend_each_others_limits() -> None:
    limits = limiter(requests_per_minute=1)
    limits.take_request(caller("a"))
    limits.take_request(caller("b"))
    with pytest.raises(RateLimitError):
        limits.take_request(caller("a"))


def test_a_keys_own_limit_comes_before_the_servers_and_the_others_stay() -> None:
    limits = limiter(requests_per_minute=1, tokens_per_minute=10)
    ours = caller(requests_per_minute=2)
    limits.take_request(ours)
    limits.take_request(ours)
    told = dict(limits.headers(ours))
    assert told[b"x-ratelimit-limit-requests"] == b"2"
    assert told[b"x-ratelimit-limit-tokens"] == b"10"


def test_a_changed_limit_counts_at_once_and_forgives_nothing() -> None:
    limits = limiter()
    for _ in range(4):
        limits.take_request(caller(requests_per_minute=5))
    with pytest.raises(RateLimitError):
        limits.take_request(caller(requests_per_minute=4))
    limits.take_request(caller(requests_per_minute=6))


def test_the_budget_of_a_day_comes_back_at_midnight() -> None:
    wall = Clock(86_400 * 100 - 60)
    limits = limiter(wall=wall, tokens_per_day=100)
    with limits.reserve(caller(), prompt_tokens=20, answer_tokens=70) as reservation:
        reservation.completion_tokens = 90
    with pytest.raises(RateLimitError) as refused:
        limits.reserve(caller(), prompt_tokens=10, answer_tokens=10)
    assert (refused.value.kind, refused.value.retry_after_s) == ("budget", 60)
    wall.now += 60
    limits.reserve(caller(), prompt_tokens=10, answer_tokens=10)


def test_accounts_of_callers_who_left_do_not_pile_up() -> None:
    clock = Clock()
    limits = limiter(clock, requests_per_minute=10)
    for number in range(MOST_IDLE_ACCOUNTS):
        limits.take_request(caller(f"gone {number}"))
    clock.now += 60
    held = limits.reserve(caller("gone 7"), prompt_tokens=1, answer_tokens=1)
    limits.take_request(caller("new"))
    assert set(limits._accounts) == {"gone 7", "new"}
    with held:
        pass


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "9", 10**13])
def test_a_limit_is_a_whole_number_from_one_on(value: object) -> None:
    with pytest.raises(ConfigError, match="tokens_per_day"):
        read_limits({"tokens_per_day": value})


def test_an_unknown_limit_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'per_second'.*requests_per_minute"):
        read_limits({"per_second": 1})
