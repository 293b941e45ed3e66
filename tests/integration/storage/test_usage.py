"""Several servers add what was used to one PostgreSQL database at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qwenstack.storage import Usage, UsageKey, UsageRecords, open_database

DAY = "2026-11-26"


def test_what_several_servers_add_at_once_is_the_sum(postgres: Any) -> None:
    databases = [open_database(postgres.url) for _ in range(4)]
    records = [UsageRecords(database) for database in databases]
    one = Usage(tenant="t", requests=1, prompt_tokens=2, completion_tokens=3)
    used = {UsageKey(DAY, account): one for account in ("b", "a", "c")}

    def add(server: UsageRecords) -> None:
        for _ in range(25):
            server.exchange(used, DAY, ())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, records))
    totals = records[0].of_day(DAY)
    assert {account: total.requests for account, total in totals.items()} == {"a": 100, "b": 100, "c": 100}
    assert totals["a"].tokens == 500
    for database in databases:
        database.close()
