"""How many tokens each key used on each day: one row a key and day, added to, never rewritten."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from qwenstack.storage.database import Database
from qwenstack.storage.schema import usage

_ACCOUNTS_A_QUERY = 500
"""Databases bound the values of a statement: the lowest such bound is SQLite's 999 of old."""


MAX_DAYS = 400
"""More than a year, so that a year can be compared with the one before month by month."""


class UsageKey(NamedTuple):
    """Whose use of which day."""

    day: str
    """UTC, as 2026-11-26."""
    account: str
    """A key's id, or what stands for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used."""

    tenant: str
    requests: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of both kinds."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            tenant=other.tenant,
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class UsageRecords:
    """The use that a database knows of; several servers may add to it."""

    def __init__(self, database: Database) -> None:
        """Use a database that `open_database` opened."""
        self._database = database
        # Both know the same statement under the same names; SQLAlchemy has it only by database.
        self._insert = sqlite.insert if database.is_sqlite else postgresql.insert

    def exchange(self, used: Mapping[UsageKey, Usage], day: str, accounts: Collection[str]) -> dict[str, Usage]:
        """Add what was used, all of it or nothing, and return what some accounts used on a day.

        Raises:
            StorageError: the database does not answer; nothing was added.
        """

        def work(connection: Connection) -> dict[str, Usage]:
            self._add(connection, used)
            asked = sorted(accounts)
            totals: dict[str, Usage] = {}
            for start in range(0, len(asked), _ACCOUNTS_A_QUERY):
                some = usage.c.account.in_(asked[start : start + _ACCOUNTS_A_QUERY])
                totals |= {key.account: total for key, total in _read(connection, (usage.c.day == day) & some)}
            return totals

        if used:
            return self._database.write(work)
        return self._database.read(work) if accounts else {}

    def of_day(self, day: str) -> dict[str, Usage]:
        """Return what every key used on a day, by account.

        Raises:
            StorageError: the database cannot be read.
        """
        found = self._database.read(lambda connection: _read(connection, usage.c.day == day))
        return {key.account: total for key, total in found}

    def of_last_days(self, days: int, *, now_s: float) -> Sequence[tuple[UsageKey, Usage]]:
        """Return what was used on so many days, the last of which is today; the newest day first.

        Raises:
            StorageError: the database cannot be read.
        """
        day = _first_of(days, now_s)
        return self._database.read(lambda connection: _read(connection, usage.c.day >= day))

    def sweep(self, *, now_s: float) -> int:
        """Remove what is older than anybody can ask for; return how many rows that were.

        Raises:
            StorageError: the database cannot be written to.
        """
        is_old = usage.c.day < _first_of(MAX_DAYS, now_s)
        return self._database.write(lambda connection: connection.execute(delete(usage).where(is_old)).rowcount)

    def _add(self, connection: Connection, used: Mapping[UsageKey, Usage]) -> None:
        # In one order, so that two servers that add the same rows wait for each other, not both for ever.
        for key, new in sorted(used.items()):
            counts = {
                "requests": new.requests,
                "prompt_tokens": new.prompt_tokens,
                "completion_tokens": new.completion_tokens,
            }
            statement = self._insert(usage).values(day=key.day, account=key.account, tenant=new.tenant, **counts)
            added = {name: usage.c[name] + statement.excluded[name] for name in counts}
            connection.execute(statement.on_conflict_do_update(index_elements=["day", "account"], set_=added))


def _first_of(days: int, now_s: float) -> str:
    """Return the first of so many days, the last of which is today."""
    return time.strftime("%Y-%m-%d", time.gmtime(now_s - (days - 1) * 86_400))


def _read(connection: Connection, condition: ColumnElement[bool]) -> list[tuple[UsageKey, Usage]]:
    query = select(usage).where(condition).order_by(usage.c.day.desc(), usage.c.account)
    return [
        (
            UsageKey(row.day, row.account),
            Usage(
                tenant=row.tenant,
                requests=row.requests,
                prompt_tokens=row.prompt_tokens,
                completion_tokens=row.completion_tokens,
            ),
        )
        for row in connection.execute(query)
    ]
