"""What was acknowledged is there after `kill -9`, of the writer and of the database's own server."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from qwenstack.core.errors import StorageError
from qwenstack.storage import ApiKeys, AuditLog, AuditRecord, Database, open_database

KILLS = int(os.environ.get("QWENSTACK_STORAGE_KILLS", "10"))
"""`make test-long` sets 500."""
SERVER_KILLS = int(os.environ.get("QWENSTACK_POSTGRES_KILLS", "2"))
"""`make test-long` sets 20."""

WRITER = """
import sys
from qwenstack.storage import ApiKeys, open_database
keys = ApiKeys(open_database(sys.argv[1]))
while True:
    print(keys.create(name="n", tenant="t", actor="writer").key.id, flush=True)
"""


def check_whole(database: Database, acknowledged: set[str]) -> None:
    """Every acknowledged key is there, with its record in a chain that is whole."""
    stored = {key.id for key in ApiKeys(database).all()}
    assert acknowledged <= stored
    result = AuditLog(database).verify()
    assert (result.num_entries, result.broken_at) == (len(stored), None)


@pytest.mark.timeout(1800)
def test_d3_no_acknowledged_write_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    url = f"sqlite:///{tmp_path / 'q.db'}"
    open_database(url).close()
    acknowledged: set[str] = set()
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged.add(writer.stdout.readline().strip())
            time.sleep(rng.uniform(0, 0.1))
            writer.kill()
            lines = writer.stdout.read().split("\n")
        acknowledged.update(line for line in lines[:-1] if line)
        database = open_database(url)
        assert database.read(lambda connection: connection.execute(text("PRAGMA integrity_check")).scalar()) == "ok"
        check_whole(database, acknowledged)
        database.close()
    assert len(acknowledged) >= KILLS


@pytest.mark.timeout(1800)
def test_d4_no_acknowledged_write_is_lost_when_postgres_is_killed(postgres: Any) -> None:
    database = open_database(postgres.url)
    acknowledged: set[str] = set()
    for _ in range(SERVER_KILLS):
        keys = ApiKeys(database)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, postgres.url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as writer:
            assert writer.stdout is not None
            acknowledged.add(writer.stdout.readline().strip())
            time.sleep(random.uniform(0, 0.2))
            postgres.kill()
            acknowledged.update(line for line in writer.stdout.read().split("\n")[:-1] if line)
            writer.wait(60)
        with pytest.raises(StorageError):
            keys.create(name="n", tenant="t", actor="me")
        postgres.start()
        check_whole(database, acknowledged)
        assert keys.create(name="n", tenant="t", actor="me").key.id in {key.id for key in keys.all()}
    database.close()


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
