"""How the tables came to be, one step after the other, run by Alembic within one transaction.

Alembic is imported only where there is something to do: that costs a tenth of a second, and a server starts often.
"""

from __future__ import annotations

from importlib.resources import files

from sqlalchemy import Connection, inspect, text

from qwenstack.core.errors import StorageError

NEWEST_REVISION = "0004"
"""The last file of `versions`; a test compares them."""


_LOCK_KEY = 0x71_77_65_6E
"""Any number that is ours; who migrates a PostgreSQL database holds the lock of this name."""


def current_revision(connection: Connection) -> str | None:
    """Return which step a database is at; None where it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def upgrade(connection: Connection) -> None:
    """Bring a database to the newest step; what another process did meanwhile is not done again.

    Raises:
        StorageError: a newer version made it.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":  # SQLite's transaction holds the only lock there is
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    config = Config()
    config.set_main_option("script_location", str(files(__name__)).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageError(
            "The database was made by a newer version of qwenstack. Install that version, or restore a backup."
        ) from error
