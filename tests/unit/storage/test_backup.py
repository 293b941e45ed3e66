"""A backup is one moment's state in one private file; what is restored is that state, with a note of the act."""

from __future__ import annotations

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
    restore(database, copy, actor="operator")
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
        restore(database, tmp_path / "missing.db", actor="me")
    (tmp_path / "text.db").write_text("not a database " * 1000)
    with pytest.raises(StorageError, match="cannot be restored"):
        restore(database, tmp_path / "text.db", actor="me")
    (tmp_path / "empty.db").write_bytes(b"")
    with pytest.raises(StorageError, match="no backup of qwenstack"):
        restore(database, tmp_path / "empty.db", actor="me")
    damaged = bytearray(copy.read_bytes())
    damaged[4096 * 2 : 4096 * 4] = b"\xff" * 4096 * 2
    (tmp_path / "damaged.db").write_bytes(damaged)
    with pytest.raises(StorageError):
        restore(database, tmp_path / "damaged.db", actor="me")
    assert names(database) == {"kept"}
    assert AuditLog(database).verify().num_entries == 1
    assert database.path is not None
    assert not list(database.path.parent.glob("*.restore*"))
