"""A backup is one moment's state in one private file; what is restored is that state, with a note of the act."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from qwenstack.core.errors import ConfigError, StorageError
from qwenstack.serving.identity import KeyRing
from qwenstack.serving.key_watch import refresh
from qwenstack.storage import ApiKeys, AuditLog, Database, back_up, open_database, restore


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'data' / 'q.db'}")


def url_of(database: Database) -> str:
    return f"sqlite:///{database.path}"


def names(database: Database) -> set[str]:
    return {key.name for key in ApiKeys(database).all()}


def test_what_is_restored_is_what_was_backed_up(database: Database, tmp_path: Path) -> None:
    keys = ApiKeys(database)
    kept = keys.create(name="kept", tenant="t", actor="me")
    copy = tmp_path / "copy.db"
    assert back_up(database, copy) == copy.stat().st_size
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    lost = keys.create(name="lost", tenant="t", actor="me")
    keys.revoke(kept.key.id, actor="me")
    ring = KeyRing((), keys.snapshot())
    restore(url_of(database), copy, actor="operator")
    assert names(database) == {"kept"}
    refresh(ring, keys)  # a server that runs notices, though the copy had seen fewer changes
    assert ring.identify(kept.text, now_ms=0).tenant == "t"
    assert ring.identify(lost.text, now_ms=0).tenant == ""
    log = AuditLog(database)
    assert log.verify().broken_at is None
    assert [(entry.record.actor, entry.record.action) for entry in log.newest()] == [
        ("operator", "storage.restore"),
        ("me", "key.create"),
    ]
    assert database.path is not None
    assert {path.name for path in database.path.parent.iterdir()} <= {"q.db", "q.db-wal", "q.db-shm"}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "copy.db"}
    keys.create(name="new", tenant="t", actor="me")
    assert names(open_database(f"sqlite:///{database.path}")) == {"kept", "new"}


def test_a_backup_beside_writers_is_whole(database: Database, tmp_path: Path) -> None:
    keys, stopping = ApiKeys(database), threading.Event()

    def write() -> None:
        while not stopping.is_set():
            keys.create(name="n", tenant="t", actor="me")

    writer = threading.Thread(target=write)
    writer.start()
    sizes: list[int] = []
    for number in range(5):
        path = tmp_path / f"{number}.db"
        back_up(database, path)
        copy = open_database(f"sqlite:///{path}")
        result = AuditLog(copy).verify()
        assert (result.num_entries, result.broken_at) == (len(ApiKeys(copy).all()), None)
        sizes.append(result.num_entries)
        copy.close()
    stopping.set()
    writer.join()
    assert sizes == sorted(sizes)


def test_wrong_files_change_nothing(database: Database, tmp_path: Path) -> None:
    ApiKeys(database).create(name="kept", tenant="t", actor="me")
    copy = tmp_path / "copy.db"
    back_up(database, copy)
    with pytest.raises(ConfigError, match="there already"):
        back_up(database, copy)
    with pytest.raises(StorageError, match="cannot be written"):
        back_up(database, tmp_path / "missing" / "copy.db")
    with pytest.raises(ConfigError, match="no backup"):
        restore(url_of(database), tmp_path / "missing.db", actor="me")
    (tmp_path / "text.db").write_text("not a database " * 1000)
    with pytest.raises(StorageError, match="cannot be restored"):
        restore(url_of(database), tmp_path / "text.db", actor="me")
    (tmp_path / "empty.db").write_bytes(b"")
    with pytest.raises(StorageError, match="no backup of qwenstack"):
        restore(url_of(database), tmp_path / "empty.db", actor="me")
    damaged = bytearray(copy.read_bytes())
    damaged[4096 * 2 : 4096 * 4] = b"\xff" * 4096 * 2
    (tmp_path / "damaged.db").write_bytes(damaged)
    with pytest.raises(StorageError):
        restore(url_of(database), tmp_path / "damaged.db", actor="me")
    assert names(database) == {"kept"}
    assert AuditLog(database).verify().num_entries == 1
    assert database.path is not None
    assert not list(database.path.parent.glob("*.restore*"))


@pytest.fixture
def bad_copies(database: Database, tmp_path: Path) -> list[Path]:
    """No database, half of one, none of ours, and one of a newer version."""
    good = tmp_path / "good.db"
    back_up(database, good)
    copies = [tmp_path / name for name in ("garbage.db", "cut.db", "foreign.db", "newer.db")]
    garbage, cut, foreign, newer = copies
    garbage.write_bytes(b"garbage")
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    foreign.write_bytes(b"")
    newer.write_bytes(good.read_bytes())
    with contextlib.closing(sqlite3.connect(newer)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    return copies


def test_a_copy_that_is_refused_makes_nothing(bad_copies: list[Path], tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    for copy in bad_copies:
        for target in (tmp_path / "new.db", tmp_path / "new" / "folder" / "new.db"):
            with pytest.raises(StorageError):
                restore(f"sqlite:///{target}", copy, actor="me")
            assert set(tmp_path.rglob("*")) == before, copy.name


def test_a_copy_that_is_refused_leaves_what_is_there_as_it_is(
    database: Database, bad_copies: list[Path], tmp_path: Path
) -> None:
    old = tmp_path / "old.db"
    back_up(database, old)
    with contextlib.closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    content = old.read_bytes()
    for copy in bad_copies:
        with pytest.raises(StorageError):
            restore(f"sqlite:///{old}", copy, actor="me")
        assert old.read_bytes() == content, copy.name


def test_a_copy_is_restored_where_there_was_nothing(database: Database, tmp_path: Path) -> None:
    ApiKeys(database).create(name="kept", tenant="t", actor="me")
    copy, target = tmp_path / "copy.db", tmp_path / "new" / "q.db"
    back_up(database, copy)
    restore(f"sqlite:///{target}", copy, actor="me")
    assert names(open_database(f"sqlite:///{target}")) == {"kept"}
    assert (stat.S_IMODE(target.stat().st_mode), stat.S_IMODE(target.parent.stat().st_mode)) == (0o600, 0o700)


def test_an_older_version_takes_the_place_of_a_newer_one(database: Database, tmp_path: Path) -> None:
    ApiKeys(database).create(name="kept", tenant="t", actor="me")
    copy, target = tmp_path / "copy.db", tmp_path / "upgraded.db"
    back_up(database, copy)
    back_up(database, target)
    with contextlib.closing(sqlite3.connect(target)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    restore(f"sqlite:///{target}", copy, actor="me")
    assert names(open_database(f"sqlite:///{target}")) == {"kept"}


def test_a_database_that_is_no_file_of_ours_is_not_restored(tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_bytes(b"")
    with pytest.raises(ConfigError, match="pg_restore"):
        restore("postgresql+psycopg://user@127.0.0.1:1/name", tmp_path / "copy.db", actor="me")


def test_what_is_no_database_is_not_replaced(database: Database, tmp_path: Path) -> None:
    copy, target = tmp_path / "copy.db", tmp_path / "notes.txt"
    back_up(database, copy)
    target.write_text("not a database " * 1000)
    with pytest.raises(StorageError, match=r"notes.txt' cannot be written to"):
        restore(f"sqlite:///{target}", copy, actor="me")
    assert target.read_text() == "not a database " * 1000
    assert {path.name for path in tmp_path.iterdir()} == {"data", "copy.db", "notes.txt"}
