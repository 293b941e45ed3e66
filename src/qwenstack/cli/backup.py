"""`qwenstack backup` and `qwenstack restore`: the database to a file, and back."""

from __future__ import annotations

import sys
from pathlib import Path

from qwenstack.cli.options import Assignments
from qwenstack.cli.settings import load_settings
from qwenstack.cli.storage import COMMAND_LINE_ACTOR, open_storage, url_of


def backup(file: Path, /, *, assignments: Assignments = ()) -> None:
    """Copy keys and audit log to a file, of one moment, while servers go on.

    Parameters
    ----------
    file
        Where to; it must not be there yet.
    """
    from qwenstack.storage import back_up

    with open_storage(load_settings(assignments).value.storage) as database:
        num_bytes = back_up(database, file)
    sys.stdout.write(f"{num_bytes / 1e6:,.1f} MB in {file}\n")


def restore(file: Path, /, *, assignments: Assignments = ()) -> None:
    """Put a backup in the place of all keys and of the audit log, while servers go on.

    Parameters
    ----------
    file
        What 'qwenstack backup' wrote.
    """
    from qwenstack import storage

    storage.restore(url_of(load_settings(assignments).value.storage), file, actor=COMMAND_LINE_ACTOR)
    sys.stdout.write(f"restored {file}\n")
