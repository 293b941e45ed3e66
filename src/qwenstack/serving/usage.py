"""Who used how much today: counted in memory, written to the database beside the requests.

Writing waits for nobody and nobody waits for it. What was used in the last moment before a crash is not charged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from qwenstack.serving.chores import repeating
from qwenstack.serving.identity import Identity
from qwenstack.storage import Usage, UsageKey

WRITE_EVERY_S = 0.5
MOST_UNWRITTEN = 100_000
"""Rows that wait while the database is away; a row is a key and a day."""


class Records(Protocol):
    """Where use is kept; `qwenstack.storage.UsageRecords` is one."""

    def exchange(self, used: Mapping[UsageKey, Usage], day: str, accounts: Collection[str]) -> Mapping[str, Usage]:
        """Add what was used, all of it or nothing, and return what some accounts used on a day."""
        ...

    def of_day(self, day: str) -> Mapping[str, Usage]:
        """Return what every account used on a day."""
        ...


class MemoryRecords:
    """Where use is kept without a database: one day's, of this server, until it ends."""

    def __init__(self) -> None:
        """Know of nothing yet."""
        self._used: dict[UsageKey, Usage] = {}

    def exchange(self, used: Mapping[UsageKey, Usage], day: str, accounts: Collection[str]) -> Mapping[str, Usage]:
        """Add what was used, and return what some used on a day; what was of other days is forgotten."""
        for key, new in used.items():
            _add(self._used, key, new)
        self._used = {key: total for key, total in self._used.items() if key.day == day}
        return {key.account: total for key, total in self._used.items() if key.account in accounts}

    def of_day(self, day: str) -> Mapping[str, Usage]:
        """Return what every account used on a day."""
        return {key.account: total for key, total in self._used.items() if key.day == day}


class UsageLedger:
    """Counts tokens by caller and day."""

    def __init__(self, records: Records, *, clock: Callable[[], float] = time.time) -> None:
        """Keep the counts in `records`."""
        self._records = records
        self._clock = clock
        self._day = self._today()
        self._stored = dict(records.of_day(self._day))
        """Today's, of all servers, as the database had them last."""
        self._asked: set[str] = set()
        """Whose tokens of today somebody wanted to know: what other servers count matters for these alone."""
        self._unwritten: dict[UsageKey, Usage] = {}
        self._in_writing: dict[UsageKey, Usage] = {}

    def note(self, caller: Identity, *, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one request that has ended."""
        used = Usage(tenant=caller.tenant, requests=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        key = UsageKey(self._today(), caller.account)
        if key in self._unwritten or len(self._unwritten) < MOST_UNWRITTEN:
            _add(self._unwritten, key, used)

    def tokens_today(self, caller: Identity) -> int:
        """Return what a caller used since midnight, UTC."""
        day = self._today()
        self._turn_page(day)
        self._asked.add(caller.account)
        key = UsageKey(day, caller.account)
        counted = (self._stored.get(caller.account), self._in_writing.get(key), self._unwritten.get(key))
        return sum(used.tokens for used in counted if used is not None)

    @property
    def seconds_left_today(self) -> float:
        """How long it is until the next day."""
        return 86_400 - self._clock() % 86_400

    async def write(self) -> None:
        """Write what was counted, and read what other servers counted.

        Raises:
            StorageError: the database does not answer; nothing is lost.
        """
        day = self._today()
        self._turn_page(day)
        self._in_writing, self._unwritten = self._unwritten, {}
        accounts = self._asked.union(key.account for key in self._in_writing)
        try:
            stored = await asyncio.to_thread(self._records.exchange, self._in_writing, day, accounts)
        except Exception:
            for key, used in self._unwritten.items():
                _add(self._in_writing, key, used)
            self._unwritten, self._in_writing = self._in_writing, {}
            raise
        self._turn_page(self._today())
        if day == self._day:
            self._stored.update(stored)
        self._in_writing = {}

    def _turn_page(self, day: str) -> None:
        """Forget the day before."""
        if day != self._day:
            self._day, self._stored, self._asked = day, {}, set()

    def _today(self) -> str:
        return time.strftime("%Y-%m-%d", time.gmtime(self._clock()))


def writing(ledger: UsageLedger) -> AbstractAsyncContextManager[None]:
    """Write what is counted until the block ends, and then the rest."""
    trouble = "Tokens used are counted, but not written to the database."
    return repeating(ledger.write, every_s=WRITE_EVERY_S, trouble=trouble, comes_last=True)


def _add(counts: dict[UsageKey, Usage], key: UsageKey, used: Usage) -> None:
    before = counts.get(key)
    counts[key] = used if before is None else before + used
