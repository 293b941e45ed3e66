"""Several writers, one database; that nothing is lost when they are killed are rows D3 and D4 of `reliability`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from reliability.durability import WRITER
from sqlalchemy import text

from qwenstack.storage import ApiKeys, AuditLog, AuditRecord, Database, open_database


def check_whole(database: Database, acknowledged: set[str]) -> None:
    """Every acknowledged key is there, with its record in a chain that is whole."""
    stored = {key.id for key in ApiKeys(database).all()}
    assert acknowledged <= stored
    result = AuditLog(database).verify()
    assert (result.num_entries, result.broken_at) == (len(stored), None)


def test_several_may_make_a_database_at_once(postgres: Any, tmp_path: Path) -> None:
    for url in (postgres.url, f"sqlite:///{tmp_path / 'q.db'}"):
        script = f"from qwenstack.storage import open_database; open_database({url!r}).close()"
        openers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
        assert [opener.wait(60) for opener in openers] == [0] * 4


def test_postgres_keeps_keys_and_a_chain_that_many_write(postgres: Any) -> None:
    command = [sys.executable, "-c", WRITER, postgres.url]
    database = open_database(postgres.url)
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    acknowledged: set[str] = set()
    for writer in writers:
        assert writer.stdout is not None
        acknowledged.add(writer.stdout.readline().strip())
    log = AuditLog(database)
    checked = [log.verify() for _ in range(20)]
    assert all(result.broken_at is None for result in checked)
    assert checked[-1].num_entries > checked[0].num_entries
    for writer in writers:
        writer.kill()
        assert writer.stdout is not None
        acknowledged.update(line for line in writer.stdout.read().split("\n")[:-1] if line)
        writer.wait()
        writer.stdout.close()
    check_whole(database, acknowledged)
    assert len(acknowledged) > 10
    log.append([AuditRecord(actor="a\x00b", action="x", details={"k": "nul \x00 inside"})])
    assert log.verify().broken_at is None
    database.write(lambda connection: connection.execute(text("UPDATE audit SET actor = 'x' WHERE seq = 2")))
    assert log.verify().broken_at == 2
    database.close()
