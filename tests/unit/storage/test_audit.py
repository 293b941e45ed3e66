"""The log keeps its order, and whatever is done to it behind its back is found."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from qwenstack.core.errors import StorageError
from qwenstack.storage import AuditLog, AuditRecord, Database, open_database
from qwenstack.storage import audit as audit_module


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


DAY_MS = 86_400_000


def grown(database: Database, days: int, per_day: int = 3) -> AuditLog:
    """A log with some entries of each day, and all of them in one."""
    for day in range(days):
        log = AuditLog(database, clock=lambda day=day: day * DAY_MS / 1000)
        log.append([record(number) for number in range(per_day)])
    return AuditLog(database, clock=lambda: days * DAY_MS / 1000)


def test_what_is_old_is_removed_and_the_rest_stays_one_chain(database: Database) -> None:
    log = grown(database, days=10)
    whole = log.verify()
    hashes = {entry.seq: entry.hash for entry in log.newest()}
    assert log.prune(4 * DAY_MS, actor="me") == 12
    kept = log.after(0)
    assert [entry.seq for entry in kept] == [*range(13, 31), 31]
    assert {entry.seq: entry.hash for entry in kept[:-1]} == {seq: hashes[seq] for seq in range(13, 31)}
    note = kept[-1].record
    assert (note.actor, note.action) == ("me", "audit.prune")
    details = {"through": 12, "hash": hashes[12].hex(), "num_entries": 12, "before_ms": 4 * DAY_MS}
    assert note.details == details
    checked = log.verify(whole.last_hash)
    assert (checked.num_entries, checked.pruned_through, checked.broken_at, checked.has_expected) == (
        19,
        12,
        None,
        True,
    )
    assert log.verify(hashes[12]).has_expected  # the last that was removed is known by the note
    assert not log.verify(hashes[11]).has_expected
    assert log.prune(4 * DAY_MS, actor="me") == 0
    assert log.newest(1)[0].seq == 31


def test_everything_can_be_removed_again_and_again_also_the_notes(database: Database) -> None:
    log = grown(database, days=2)
    for later, removed in ((100, 6), (101, 1), (102, 1)):
        assert log.prune(later * DAY_MS, actor="me") == removed
        checked = log.verify()
        assert (checked.num_entries, checked.broken_at) == (1, None)
    log.append([record(1)])
    assert log.verify().num_entries == 2


def test_a_clock_that_was_set_back_keeps_more_never_less(database: Database) -> None:
    for at_s in (10.0, 50.0, 20.0, 60.0):
        AuditLog(database, clock=lambda at_s=at_s: at_s).append([record(1)])
    log = AuditLog(database, clock=lambda: 70.0)
    assert log.prune(30_000, actor="me") == 1
    assert [entry.seq for entry in log.after(0)] == [2, 3, 4, 5]


def test_pages_of_removals_are_transactions_of_their_own(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "_PRUNE_PAGE", 4)
    log = grown(database, days=4)
    assert log.prune(3 * DAY_MS, actor="me") == 9
    assert log.verify().broken_at is None
    assert [entry.record.details["through"] for entry in log.after(12)] == [4, 8, 9]


@pytest.mark.parametrize(
    ("statement", "broken_at"),
    [
        ("UPDATE audit SET actor = 'x' WHERE seq = 14", 14),
        ("DELETE FROM audit WHERE seq = 13", 13),
        ("DELETE FROM audit WHERE seq = 30", 30),
        ("DELETE FROM audit WHERE seq = 31", 1),  # the note itself
        ("UPDATE audit SET details = replace(details, '12', '13') WHERE seq = 31", 14),
        ("UPDATE audit SET details = '{}' WHERE seq = 31", 1),
        ("UPDATE audit SET details = 'x' WHERE seq = 31", 1),
        ("UPDATE audit SET action = 'x' WHERE seq = 31", 1),
    ],
)
def test_sec_24_every_change_to_a_shortened_log_is_found(statement: str, broken_at: int, database: Database) -> None:
    log = grown(database, days=10)
    log.prune(4 * DAY_MS, actor="me")
    assert log.verify().broken_at is None
    database.write(lambda connection: connection.execute(text(statement)))
    assert log.verify().broken_at == broken_at


def test_sec_24_what_was_changed_is_not_removed(database: Database) -> None:
    log = grown(database, days=3)
    database.write(lambda connection: connection.execute(text("UPDATE audit SET actor = 'x' WHERE seq = 2")))
    with pytest.raises(StorageError, match="Entry 2"):
        log.prune(2 * DAY_MS, actor="me")
    assert len(log.after(0)) == 9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=25))
def test_any_order_of_entries_and_removals_leaves_the_newest_in_one_chain(acts: list[tuple[int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/q.db")
        expected: list[tuple[int, int]] = []  # the model: number and time of what is kept
        seq = 0
        for at_s, is_removal in acts:
            log = AuditLog(database, clock=lambda at_s=at_s: float(at_s))
            if is_removal:
                num_old = next((i for i, (_, time_s) in enumerate(expected) if time_s >= at_s), len(expected))
                assert log.prune(at_s * 1000, actor="me") == num_old
                expected = expected[num_old:]
            else:
                log.append([record(1)])
            if not is_removal or num_old:
                seq += 1
                expected.append((seq, at_s))
            checked = log.verify()
            assert (checked.broken_at, checked.num_entries) == (None, len(expected))
            assert [(entry.seq, entry.at_ms // 1000) for entry in log.after(0)] == expected
        database.close()
