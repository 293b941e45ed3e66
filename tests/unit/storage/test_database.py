"""A database is private, durable, all or nothing, and up to date."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, select, text, update

from qwenstack.core.errors import ConfigError, StorageError
from qwenstack.storage import Database, migrations, open_database
from qwenstack.storage.schema import api_keys, metadata, state


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'data' / 'q.db'}"


def pragma(database: Database, name: str) -> object:
    return database.read(lambda connection: connection.execute(text(f"PRAGMA {name}")).scalar())


def bump(connection: Connection) -> None:
    connection.execute(update(state).values(keys_revision=state.c.keys_revision + 1))


def revision(database: Database) -> int:
    return database.read(lambda connection: connection.execute(select(state.c.keys_revision)).scalar_one())


def test_a_new_database_is_its_owners_alone_and_waits_for_the_disk(url: str) -> None:
    database = open_database(url)
    assert database.path is not None
    assert stat.S_IMODE(database.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(database.path.parent.stat().st_mode) == 0o700
    assert (pragma(database, "journal_mode"), pragma(database, "synchronous")) == ("wal", 2)


def test_a_transaction_that_fails_leaves_nothing(url: str) -> None:
    database = open_database(url)

    def fail(connection: Connection) -> None:
        bump(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write(fail)
    with pytest.raises(StorageError, match="cannot be written"):
        database.write(lambda connection: (bump(connection), connection.execute(insert(api_keys).values(id="x"))))
    assert revision(database) == 0


def test_what_another_wrote_is_seen_and_threads_take_turns(url: str) -> None:
    databases = [open_database(url), open_database(url)]
    threads = [
        threading.Thread(target=lambda own=databases[index % 2]: [own.write(bump) for _ in range(20)])
        for index in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert revision(databases[0]) == revision(databases[1]) == 120


def test_the_steps_lead_to_the_tables_of_the_schema(url: str) -> None:
    database = open_database(url)
    differences = database.read(lambda connection: compare_metadata(MigrationContext.configure(connection), metadata))
    assert differences == []
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert scripts.get_current_head() == migrations.NEWEST_REVISION


def test_to_open_again_changes_nothing(url: str) -> None:
    first = open_database(url)
    first.write(bump)
    first.close()
    assert revision(open_database(url)) == 1


def test_a_database_of_a_newer_version_is_left_alone(url: str) -> None:
    database = open_database(url)
    database.write(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    database.close()
    with pytest.raises(StorageError, match="newer version"):
        open_database(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "cannot be read"),
        ("mysql://u@h/d", "'mysql'"),
        ("postgresql+nodriver://u:secret@h/d", "nodriver"),
        ("postgresql+psycopg://u:pa@ss:secret@h/d", "%40"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_a_wrong_url_gets_a_sentence_without_the_password(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        open_database(url)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


def test_what_is_no_database_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "q.db").write_bytes(b"not a database, and longer than the header of one " * 20)
    with pytest.raises(StorageError, match="not a database"):
        open_database(f"sqlite:///{tmp_path / 'q.db'}")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        open_database(f"sqlite:///{tmp_path / 'file' / 'q.db'}")
