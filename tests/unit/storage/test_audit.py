"""The log keeps its order, and whatever is done to it behind its back is found."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from qwenstack.storage import AuditLog, AuditRecord, Database, open_database


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


def record(number: int) -> AuditRecord:
    return AuditRecord(actor=f"a{number}", action="test", subject="s", details={"n": number, "名": "值"})


def test_entries_come_back_newest_first_and_in_pages(database: Database) -> None:
    log = AuditLog(database, clock=lambda: 5.0)
    log.append([record(1), record(2)])
    log.append([])
    log.append([record(3)])
    assert [entry.record for entry in log.newest()] == [record(3), record(2), record(1)]
    assert [entry.seq for entry in log.newest(2)] == [3, 2]
    assert [entry.seq for entry in log.newest(2, before=2)] == [1]
    assert {entry.at_ms for entry in log.newest()} == {5000}


def test_sec_24_what_would_steer_a_terminal_is_not_kept(database: Database) -> None:
    AuditLog(database).append([AuditRecord(actor="a\x1b[2J", action="b\r\nc", subject="x" * 500)])
    (entry,) = AuditLog(database).newest()
    assert entry.record.actor == "a\N{REPLACEMENT CHARACTER}[2J"
    assert entry.record.action == "b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c"
    assert len(entry.record.subject) == 200
    assert AuditLog(database).verify().broken_at is None


@pytest.mark.parametrize(
    ("statement", "broken_at"),
    [
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE seq = 3", 3),
        ("UPDATE audit SET actor = 'x' WHERE seq = 3", 3),
        ("UPDATE audit SET action = 'x' WHERE seq = 3", 3),
        ("UPDATE audit SET subject = 'x' WHERE seq = 3", 3),
        ("UPDATE audit SET outcome = 'x' WHERE seq = 3", 3),
        ("UPDATE audit SET details = '{}' WHERE seq = 3", 3),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 3", 3),
        ("UPDATE audit SET seq = 9 WHERE seq = 3", 3),
        ("UPDATE audit SET details = x'00' WHERE seq = 3", 3),
        ("UPDATE audit SET seq = -9223372036854775808 WHERE seq = 3", 1),
        ("DELETE FROM audit WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 5", 5),
        ("DELETE FROM audit", 1),
        ("UPDATE state SET audit_seq = 4", 6),
        (
            "INSERT INTO audit SELECT 6, at_ms, actor, action, subject, outcome, details, hash FROM audit LIMIT 1",
            6,
        ),
    ],
)
def test_sec_every_change_behind_its_back_is_found(statement: str, broken_at: int, database: Database) -> None:
    log = AuditLog(database)
    log.append([record(number) for number in range(1, 6)])
    whole = log.verify()
    assert (whole.num_entries, whole.broken_at) == (5, None)
    database.write(lambda connection: connection.execute(text(statement)))
    assert log.verify().broken_at == broken_at


def test_the_hash_at_the_end_stands_for_all_before(database: Database) -> None:
    log = AuditLog(database, clock=lambda: 1.0)
    hashes = [log.verify().last_hash]
    for number in range(3):
        log.append([record(number)])
        hashes.append(log.verify().last_hash)
    assert len(set(hashes)) == 4
    assert log.newest(1)[0].hash == hashes[-1]


def test_a_hash_that_was_kept_tells_when_the_newest_are_cut_off(database: Database) -> None:
    log = AuditLog(database)
    log.append([record(1)])
    kept = log.verify().last_hash
    log.append([record(2)])
    newest = log.verify().last_hash
    assert log.verify(kept).has_expected
    database.write(lambda connection: connection.execute(text("DELETE FROM audit WHERE seq = 2")))
    cut = text("UPDATE state SET audit_seq = 1, audit_hash = (SELECT hash FROM audit)")
    database.write(lambda connection: connection.execute(cut))
    assert log.verify().broken_at is None
    assert log.verify(kept).has_expected
    assert not log.verify(newest).has_expected


def test_whatever_a_name_holds_the_log_can_be_shown(database: Database) -> None:
    details = {"name": "x\\u0000", "nul": "\x00", "half": "\ud800"}
    AuditLog(database).append([AuditRecord(actor="a", action="b", details=details)])
    (entry,) = AuditLog(database).newest()
    assert entry.record.details == details
    database.write(lambda connection: connection.execute(text("UPDATE audit SET details = 'no json'")))
    (entry,) = AuditLog(database).newest()
    assert entry.record.details == {"unreadable": "no json"}


def test_many_writers_make_one_chain(database: Database) -> None:
    assert database.path is not None
    logs = [AuditLog(database), AuditLog(open_database(f"sqlite:///{database.path}"))]
    threads = [
        threading.Thread(target=lambda own=logs[index % 2]: [own.append([record(1), record(2)]) for _ in range(10)])
        for index in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logs[0].verify().num_entries == 80
    assert logs[0].verify().broken_at is None
