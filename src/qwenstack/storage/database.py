"""One database: opened, brought up to date, read and written in transactions.

SQLite (`sqlite:///PATH`) is for one machine: write-ahead log, and every commit waits for the disk. PostgreSQL
(`postgresql+psycopg://...`) is for several. Statements are SQLAlchemy's, so values never become SQL text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from qwenstack.core.errors import ConfigError, StorageError
from qwenstack.storage.migrations import NEWEST_REVISION, current_revision, upgrade

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

ResultT = TypeVar("ResultT")

BUSY_TIMEOUT_S = 15
"""How long one process waits for another that writes; longer than any transaction here should take."""


class Database:
    """A database whose tables are up to date; safe to use from any thread."""

    def __init__(self, engine: Engine) -> None:
        """Take over an engine; `open_database` makes one."""
        self._engine = engine
        # SQLite has one writer at a time. Threads of this process wait for their turn here, in order and without
        # polling; only other processes are waited for by SQLite's own busy timeout.
        self._turn = _Turn() if self.is_sqlite else nullcontext()

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of this machine."""
        return self._engine.dialect.name == "sqlite"

    @property
    def path(self) -> Path | None:
        """The file, where there is one."""
        return Path(self._engine.url.database) if self.is_sqlite and self._engine.url.database else None

    def read(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Run some reads on one consistent state.

        Raises:
            StorageError: the database cannot be reached or is damaged.
        """
        try:
            with self._engine.connect() as connection:
                reader = connection
                if not self.is_sqlite:  # whose transactions see one state anyway
                    reader = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                with reader.begin():
                    return work(reader)
        except SQLAlchemyError as error:
            raise StorageError(f"The database cannot be read: {_reason(error)}.") from error

    def write(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Run one transaction; when this returns, what it wrote is on the disk, and if it raises, nothing is.

        Raises:
            StorageError: the database cannot be written to.
        """
        try:
            with self._turn, self._engine.connect() as connection:
                writer = connection.execution_options(qwenstack_writes=True)
                with writer.begin():
                    return work(writer)
        except SQLAlchemyError as error:
            raise StorageError(f"The database cannot be written to: {_reason(error)}.") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


class _Turn:
    """A lock that is not waited for longer than the database is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_S):
            raise StorageError(f"The database cannot be written to: others wrote for {BUSY_TIMEOUT_S} s.")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def open_database(url: str) -> Database:
    """Open a database, making it where there is none, and bring its tables up to date.

    Raises:
        ConfigError: the URL is none that is understood, or its driver is not installed.
        StorageError: it cannot be opened, or was made by a newer version.
    """
    engine = _engine_of(url)
    database = Database(engine)
    try:
        if (path := database.path) is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                path.touch(mode=0o600)
        revision = database.read(current_revision)
        if revision != NEWEST_REVISION:
            database.write(upgrade)
    except OSError as error:
        database.close()
        raise StorageError(
            f"The database at {_shown(engine)} cannot be made: {error.strerror}. Choose another with `storage.url`."
        ) from error
    except Exception:
        database.close()
        raise
    return database


def sqlite_path(url: str) -> Path | None:
    """Return the file that a URL means, which need not be there; None where it means a PostgreSQL database.

    Raises:
        ConfigError: the URL is none that is understood.
    """
    parsed = _parse_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def lock_state(connection: Connection) -> None:
    """Make other writers wait until this transaction has ended; SQLite does so from its beginning."""
    from qwenstack.storage.schema import state

    connection.execute(select(state.c.id).with_for_update())


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # whose words have parts of the password
        raise ConfigError(f"The database's URL cannot be read; {_FORMS}") from None
    if parsed.drivername not in _DRIVERS:
        raise ConfigError(f"A database of the kind {parsed.drivername!r} is not used here; {_FORMS}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ConfigError(f"A database in memory would lose its keys; {_FORMS}")
    return parsed


def _engine_of(url: str) -> Engine:
    parsed = _parse_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    try:
        engine = create_engine(
            parsed, pool_pre_ping=not is_sqlite, connect_args={} if is_sqlite else _POSTGRES_ARGUMENTS
        )
    except (NoSuchModuleError, ModuleNotFoundError):
        raise ConfigError(
            "The driver for PostgreSQL is missing: install it with `.venv/bin/pip install -e '.[postgres]'`."
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


_DRIVERS = frozenset({"sqlite", "sqlite+pysqlite", "postgresql+psycopg"})
_FORMS = (
    "give `sqlite:////folder/file.db` or `postgresql+psycopg://user:password@host/name`, "
    "with `%40` for an @ in the password and `%3A` for a colon."
)
_POSTGRES_ARGUMENTS = {
    "connect_timeout": 5,
    "options": f"-c lock_timeout={BUSY_TIMEOUT_S}s -c statement_timeout={2 * BUSY_TIMEOUT_S}s",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Nobody waits for a server that is gone, or for a transaction that somebody forgot."""


def _set_up_sqlite(connection: DBAPIConnection, _: object) -> None:
    """Leave transactions to us, and let a commit return only when the disk has it."""
    connection.isolation_level = None  # the driver's own BEGIN comes too late to hold a consistent state
    cursor = connection.cursor()
    for pragma in (
        f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}",
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        "PRAGMA trusted_schema = OFF",
    ):
        cursor.execute(pragma)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once where the transaction will write: a later wish for it can be refused for good."""
    writes = connection.get_execution_options().get("qwenstack_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _shown(engine: Engine) -> str:
    return repr(engine.url.render_as_string(hide_password=True))


def _reason(error: SQLAlchemyError) -> str:
    """Return the driver's words without the statement and its values."""
    words = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else type(error).__name__
    return words.strip().splitlines()[0].rstrip(".") if words.strip() else type(error).__name__
