"""What the database acknowledged is there after `kill -9`, of the writer (D3) and of the database's own server (D4)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from support.postgres import PostgresServer, find_postgres

from qwenstack.core.errors import StorageError
from qwenstack.storage import ApiKeys, AuditLog, Database, open_database
from reliability.verdict import Bar, Findings, Row, RowSkipped

WRITER = """
import sys
from qwenstack.storage import ApiKeys, open_database
keys = ApiKeys(open_database(sys.argv[1]))
while True:
    print(keys.create(name="n", tenant="t", actor="writer").key.id, flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kills:
    """How often."""

    count: int
    seed: int | None = None


@dataclass(slots=True)
class Losses:
    """What was found after the kills."""

    acknowledged: int = 0
    lost: int = 0
    broken_chains: int = 0
    damaged: int = 0
    accepted_while_away: int = 0

    def look(self, database: Database, acknowledged: Iterable[str]) -> None:
        """Compare a database with what it acknowledged: each key is there, and its record in a chain that is whole."""
        known, stored = set(acknowledged), {key.id for key in ApiKeys(database).all()}
        self.acknowledged = len(known)
        self.lost += len(known - stored)
        result = AuditLog(database).verify()
        self.broken_chains += (result.num_entries, result.broken_at) != (len(stored), None)

    def as_findings(self, kills: int, seed: int) -> Findings:
        """Return the bars."""
        return Findings(
            bars=[
                Bar(name="acknowledged writes lost", value=self.lost, at_most=0),
                Bar(name="audit chains broken", value=self.broken_chains, at_most=0),
                Bar(name="integrity checks failed", value=self.damaged, at_most=0),
                Bar(name="writes acknowledged while the server was dead", value=self.accepted_while_away, at_most=0),
                Bar(name="writes acknowledged", value=self.acknowledged, at_least=kills),
            ],
            figures={"kills": kills, "seed": seed},
        )


def check_sqlite(database: Database, losses: Losses) -> None:
    """Ask SQLite about its own pages."""
    found = database.read(lambda connection: connection.execute(text("PRAGMA integrity_check")).scalar())
    losses.damaged += found != "ok"


def kill_sqlite_writers(kills: int, folder: Path, dice: random.Random) -> Losses:
    """Kill a writer again and again, and look each time."""
    url, losses, acknowledged = f"sqlite:///{folder / 'q.db'}", Losses(), set[str]()
    open_database(url).close()
    for _ in range(kills):
        with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged.add(writer.stdout.readline().strip())
            time.sleep(dice.uniform(0, 0.1))
            writer.kill()
            acknowledged.update(line for line in writer.stdout.read().split("\n")[:-1] if line)
        with contextlib.closing(open_database(url)) as database:
            check_sqlite(database, losses)
            losses.look(database, acknowledged)
    return losses


def kill_postgres(kills: int, server: PostgresServer, dice: random.Random) -> Losses:
    """Kill the database's server under a writer again and again, and look each time."""
    losses, acknowledged = Losses(), set[str]()
    with contextlib.closing(open_database(server.url)) as database:
        keys = ApiKeys(database)
        for _ in range(kills):
            command = [sys.executable, "-c", WRITER, server.url]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
                assert writer.stdout is not None
                acknowledged.add(writer.stdout.readline().strip())
                time.sleep(dice.uniform(0, 0.2))
                server.kill()
                acknowledged.update(line for line in writer.stdout.read().split("\n")[:-1] if line)
                writer.wait(60)
            with contextlib.suppress(StorageError):
                keys.create(name="n", tenant="t", actor="me")
                losses.accepted_while_away += 1
            server.start()
            losses.look(database, acknowledged)
            acknowledged.add(keys.create(name="n", tenant="t", actor="me").key.id)
    return losses


async def outlive_killed_writers(plan: Kills) -> Findings:
    """D3."""
    seed = random.randrange(1 << 32) if plan.seed is None else plan.seed
    with tempfile.TemporaryDirectory() as folder:
        losses = await asyncio.to_thread(kill_sqlite_writers, plan.count, Path(folder), random.Random(seed))
    return losses.as_findings(plan.count, seed)


async def outlive_killed_servers(plan: Kills) -> Findings:
    """D4."""
    binaries = find_postgres()
    if binaries is None:
        raise RowSkipped("no PostgreSQL server here; Debian's package is `postgresql`")
    seed = random.randrange(1 << 32) if plan.seed is None else plan.seed
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(binaries, Path(folder))
        server.start()
        try:
            losses = await asyncio.to_thread(kill_postgres, plan.count, server, random.Random(seed))
        finally:
            server.stop()
    return losses.as_findings(plan.count, seed)


D3 = Row(
    id="D3",
    claim="SQLite's writer is killed 500 times: every write that was acknowledged is there, the audit chain is whole",
    sizes={"ci": Kills(count=10), "long": Kills(count=500)},
    run=outlive_killed_writers,
)
D4 = Row(
    id="D4",
    claim="PostgreSQL is killed 20 times under a writer: the same",
    sizes={"ci": Kills(count=2), "long": Kills(count=20)},
    run=outlive_killed_servers,
)
