"""The database that the settings mean."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING

from qwenstack.cli.settings import StorageSettings, data_dir

if TYPE_CHECKING:
    from qwenstack.storage import Database

COMMAND_LINE_ACTOR = "command line"
"""Who acts in the audit log where somebody uses a command: whoever may open the database may do everything with it."""


@contextlib.contextmanager
def open_storage(settings: StorageSettings) -> Generator[Database]:
    """Open the database until the block ends.

    Raises:
        ConfigError: the URL is none that is understood.
        StorageError: the database cannot be opened.
    """
    from qwenstack.storage import open_database

    database = open_database(settings.url or f"sqlite:///{data_dir() / 'qwenstack.db'}")
    try:
        yield database
    finally:
        database.close()
