"""The database that the settings mean."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from qwenstack.cli.settings import StorageSettings, data_dir
from qwenstack.core.errors import ConfigError

if TYPE_CHECKING:
    from qwenstack.storage import Database

COMMAND_LINE_ACTOR = "command line"
"""Who acts in the audit log where somebody uses a command: whoever may open the database may do everything with it."""
NO_DATABASE = "off"
"""As `storage.url`: a server that keeps nothing, where no file can be written."""


@contextlib.contextmanager
def open_storage(settings: StorageSettings, *, may_create: bool = True) -> Generator[Database]:
    """Open the database until the block ends.

    Raises:
        ConfigError: the URL is none that is understood, or there is no database yet and none may be made.
        StorageError: the database cannot be opened.
    """
    from qwenstack.storage import open_database

    url = url_of(settings)
    own = _own_file()
    if settings.url is None and not may_create and not own.exists():
        raise ConfigError(f"There is no database at {str(own)!r} yet: neither keys nor an audit log.")
    database = open_database(url)
    try:
        yield database
    finally:
        database.close()


def url_of(settings: StorageSettings) -> str:
    """Return the database's URL; nothing need be there.

    Raises:
        ConfigError: there is to be none.
    """
    if settings.url == NO_DATABASE:
        raise ConfigError("`storage.url` is `off`: there is no database for keys and no audit log.")
    return settings.url or f"sqlite:///{_own_file()}"


def _own_file() -> Path:
    return data_dir() / "qwenstack.db"
