"""What was used: counted once, by key and day, through failures, restarts and beside other servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.errors import StorageError
from qwenstack.serving.identity import Identity
from qwenstack.serving.usage import MemoryRecords, UsageLedger, writing
from qwenstack.storage import Usage, UsageKey, UsageRecords, open_database
from qwenstack.storage.usage import MAX_DAYS

pytestmark = pytest.mark.anyio


def caller(name: str = "k") -> Identity:
    return Identity(tenant="ours", key_id=name, accesses=frozenset())


NOON = 43_200.0


def noon() -> float:
    return NOON


class FailingRecords(MemoryRecords):
    """Fails when told to."""

    is_away = False

    def exchange(self, used: Mapping[UsageKey, Usage], day: str, accounts: Collection[str]) -> Mapping[str, Usage]:
        if self.is_away:
            raise StorageError("away")
        return super().exchange(used, day, accounts)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.tuples(st.sampled_from("ab"), st.integers(0, 99)), st.sampled_from(["write", "fail"]))))
def test_every_token_is_counted_once_whatever_fails(steps: list[tuple[str, int] | str]) -> None:
    records = FailingRecords()
    ledger = UsageLedger(records, clock=noon)
    totals = {"a": 0, "b": 0}
    for step in steps:
        if isinstance(step, tuple):
            ledger.note(caller(step[0]), prompt_tokens=step[1], completion_tokens=1)
            totals[step[0]] += step[1] + 1
        else:
            records.is_away = step == "fail"
            try:
                asyncio.run(ledger.write())
            except StorageError:
                assert records.is_away
        for name, total in totals.items():
            assert ledger.tokens_today(caller(name)) == total


async def test_a_restarted_server_knows_what_was_used_today(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'q.db'}")
    ledger = UsageLedger(UsageRecords(database), clock=noon)
    async with writing(ledger):
        ledger.note(caller(), prompt_tokens=7, completion_tokens=5)
        ledger.note(caller(), prompt_tokens=1, completion_tokens=0)
    assert UsageLedger(UsageRecords(database), clock=noon).tokens_today(caller()) == 13
    assert UsageLedger(UsageRecords(database), clock=lambda: noon() + 86_400).tokens_today(caller()) == 0
    stored = Usage(tenant="ours", requests=2, prompt_tokens=8, completion_tokens=5)
    assert UsageRecords(database).of_last_days(9, now_s=NOON) == [(UsageKey("1970-01-01", "k"), stored)]


async def test_two_servers_on_one_database_count_together(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'q.db'}"
    one, two = (UsageLedger(UsageRecords(open_database(url)), clock=noon) for _ in range(2))
    assert one.tokens_today(caller()) == 0  # from then on it wants to know
    one.note(caller(), prompt_tokens=10, completion_tokens=0)
    two.note(caller(), prompt_tokens=0, completion_tokens=20)
    for ledger in (one, two, one):
        await ledger.write()
    assert (one.tokens_today(caller()), two.tokens_today(caller())) == (30, 30)


async def test_tokens_of_the_last_minute_of_a_day_stay_in_it(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'q.db'}")
    now = [86_399.0]
    ledger = UsageLedger(UsageRecords(database), clock=lambda: now[0])
    ledger.note(caller(), prompt_tokens=3, completion_tokens=0)
    now[0] += 2
    ledger.note(caller(), prompt_tokens=4, completion_tokens=0)
    assert ledger.tokens_today(caller()) == 4
    await ledger.write()
    assert ledger.tokens_today(caller()) == 4
    days = {key.day: used.tokens for key, used in UsageRecords(database).of_last_days(9, now_s=NOON)}
    assert days == {"1970-01-01": 3, "1970-01-02": 4}


async def test_many_accounts_are_asked_for_and_only_those(tmp_path: Path) -> None:
    records = UsageRecords(open_database(f"sqlite:///{tmp_path / 'q.db'}"))
    one = Usage(tenant="t", requests=1, prompt_tokens=1, completion_tokens=0)
    records.exchange({UsageKey("1970-01-01", f"a{number}"): one for number in range(1200)}, "1970-01-01", ())
    asked = {f"a{number}" for number in range(1100)} | {"nobody"}
    assert records.exchange({}, "1970-01-01", asked).keys() == asked - {"nobody"}
    assert len(records.of_day("1970-01-01")) == 1200


def test_what_is_older_than_anybody_can_ask_for_is_removed(tmp_path: Path) -> None:
    records = UsageRecords(open_database(f"sqlite:///{tmp_path / 'q.db'}"))
    one = Usage(tenant="t", requests=1, prompt_tokens=1, completion_tokens=0)
    now_s = 1000 * 86_400 + NOON
    days = [time.strftime("%Y-%m-%d", time.gmtime(now_s - age * 86_400)) for age in (0, MAX_DAYS - 1, MAX_DAYS)]
    records.exchange({UsageKey(day, "a"): one for day in days}, days[0], ())
    assert records.sweep(now_s=now_s) == 1
    assert [key.day for key, _ in records.of_last_days(MAX_DAYS, now_s=now_s)] == days[:2]
