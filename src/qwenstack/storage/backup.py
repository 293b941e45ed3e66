"""Copies of a SQLite database, made and put back while servers use it.

PostgreSQL has its own tools for that, `pg_dump` and `pg_restore`, which know more than we do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Generator
from pathlib import Path

from sqlalchemy import Connection, update

from qwenstack.core.errors import ConfigError, StorageError
from qwenstack.storage.api_keys import new_revision
from qwenstack.storage.audit import AuditLog, AuditRecord
from qwenstack.storage.database import BUSY_TIMEOUT_S, Database, open_database, sqlite_path
from qwenstack.storage.schema import state


def back_up(database: Database, target: Path) -> int:
    """Write a copy of one consistent state; when this returns it is on the disk. Returns its bytes.

    Raises:
        ConfigError: the file is there already, or the database is no SQLite file.
        StorageError: it cannot be written.
    """
    source = _file_of(database.path)
    if target.exists():
        raise ConfigError(f"{str(target)!r} is there already; give the backup another name.")
    unfinished = target.with_name(f"{target.name}.part")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        with _connect(source) as origin, _connect(unfinished) as copy:
            origin.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        _sync(unfinished)
        unfinished.rename(target)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise StorageError(f"The backup {str(target)!r} cannot be written: {_reason(error)}.") from error
    return target.stat().st_size


def restore(url: str, backup: Path, *, actor: str) -> None:
    """Put a copy in the place of everything that a database holds, all of it or nothing.

    The database is made where there is none. Before the copy has been checked and brought up to date, nothing is made,
    and a database that is there is not even opened. Servers that use it go on, and have the keys of the copy within a
    second. The act is the next entry of the copy's audit log.

    Raises:
        ConfigError: there is no such file, or the URL is none of a SQLite file.
        StorageError: the copy is damaged or of a newer version, or the database cannot be written to.
    """
    target = _file_of(sqlite_path(url))
    if not backup.is_file():
        raise ConfigError(f"There is no backup {str(backup)!r}.")
    try:
        with _prepared(backup, target, AuditRecord(actor=actor, action="storage.restore", subject=backup.name)) as path:
            if not target.exists():
                open_database(url).close()
            _replace(target, path)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"{str(backup)!r} cannot be restored: {_reason(error)}.") from error


@contextlib.contextmanager
def _prepared(backup: Path, target: Path, record: AuditRecord) -> Generator[Path]:
    """Copy a backup to the target's disk, check it and prepare it, in a private folder that is gone afterwards."""
    nearest = next(folder for folder in target.absolute().parents if folder.exists())
    folder = nearest / f"{target.name}.restore"
    shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
    folder.mkdir(mode=0o700)
    try:
        path = folder / "copy.db"
        with _connect(backup) as copy, _connect(path) as destination:
            copy.backup(destination)
            _check(destination, backup)
        _prepare(path, record)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(target: Path, prepared: Path) -> None:
    try:
        with _connect(prepared) as copy, _connect(target) as destination:
            copy.backup(destination)  # one transaction of SQLite's
    except sqlite3.Error as error:
        raise StorageError(
            f"The database {str(target)!r} cannot be written to: {_reason(error)}. If it is damaged, move it and what "
            "begins with its name away, and restore again."
        ) from error


def _prepare(path: Path, record: AuditRecord) -> None:
    """Bring a copy up to date, note the act, and make its keys look changed to whoever knew the others."""

    def note(connection: Connection) -> None:
        AuditLog(copy).append_within(connection, [record])
        connection.execute(update(state).values(keys_revision=new_revision()))

    copy = open_database(f"sqlite:///{path}")
    try:
        copy.write(note)
    finally:
        copy.close()


def _check(copy: sqlite3.Connection, backup: Path) -> None:
    """Refuse what is damaged or is no database of ours."""
    found = copy.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise StorageError(f"The backup {str(backup)!r} is damaged: {str(found).splitlines()[0]}.")
    if copy.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone() is None:
        raise StorageError(f"{str(backup)!r} is no backup of qwenstack's.")


def _file_of(path: Path | None) -> Path:
    if path is None:
        raise ConfigError("The database is PostgreSQL; use `pg_dump` and `pg_restore`, which are made for it.")
    return path


@contextlib.contextmanager
def _connect(path: Path) -> Generator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        yield connection
    finally:
        connection.close()


def _reason(error: OSError | sqlite3.Error) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
