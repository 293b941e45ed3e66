"""`qwenstack cache`: what earlier prompts left on the disk, and how to be rid of it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cyclopts import App

from qwenstack.cli.options import AsJson, Assignments
from qwenstack.cli.output import print_json
from qwenstack.cli.settings import EngineSettings, load_settings
from qwenstack.core.errors import QwenStackError

cache = App(name="cache", help="Look at, or clear, what earlier prompts left on the disk.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What a prefix cache folder holds."""

    folder: Path
    num_blocks: int
    num_bytes: int
    oldest_use: float | None
    """When the block that was not used for the longest time was used, in seconds since 1970; None: there is none."""


@cache.command
def show(*, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """Say where the cache of earlier prompts lies, how large it is and how old."""
    settings = load_settings(assignments).value.engine
    report = report_on(folder_of(settings))
    if as_json:
        print_json(
            {
                "folder": str(report.folder),
                "blocks": report.num_blocks,
                "bytes": report.num_bytes,
                "oldest_use": report.oldest_use,
                "limit_bytes": settings.prefix_cache_disk_bytes,
                "max_age_s": settings.prefix_cache_max_age_s,
            }
        )
        return
    limit = f"{settings.prefix_cache_disk_bytes / 1e9:.1f} GB" if settings.prefix_cache_disk_bytes else "off"
    oldest = "none" if report.oldest_use is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(report.oldest_use))
    sys.stdout.write(
        f"folder      {report.folder}\n"
        f"blocks      {report.num_blocks}\n"
        f"size        {report.num_bytes / 1e6:,.1f} MB (limit: {limit})\n"
        f"oldest use  {oldest} (limit: {settings.prefix_cache_max_age_s / 86_400:g} days)\n"
    )


@cache.command
def clear(*, assignments: Assignments = ()) -> None:
    """Remove what earlier prompts left on the disk, of all models.

    A server that runs keeps what it has in its memory, and writes what it reads next.
    """
    from qwenstack.engine.kv_store import list_blocks
    from qwenstack.engine.private_folder import PrivateFolder

    path = folder_of(load_settings(assignments).value.engine)
    num_removed = num_bytes = 0
    if path.is_dir():
        try:
            folder = PrivateFolder(path)
            for entry in list_blocks(folder):
                if folder.remove(entry.name):
                    num_removed += 1
                    num_bytes += entry.num_bytes
            folder.remove_leftovers()
        except OSError as error:
            raise QwenStackError(f"Cannot clear {str(path)!r}: {error.strerror}.") from error
    sys.stdout.write(f"removed {num_removed} blocks, {num_bytes / 1e6:,.1f} MB, from {path}\n")


def folder_of(settings: EngineSettings) -> Path:
    """Return the folder that the settings mean."""
    from qwenstack.engine.kv_store import default_folder

    return settings.prefix_cache_dir or default_folder()


def report_on(path: Path) -> CacheReport:
    """Look into a folder, which need not exist.

    Raises:
        ConfigError: it is another user's, or others can write to it.
        QwenStackError: it cannot be read.
    """
    from qwenstack.engine.kv_store import disk_bytes, list_blocks
    from qwenstack.engine.private_folder import PrivateFolder

    try:
        blocks = list_blocks(PrivateFolder(path)) if path.is_dir() else []
    except OSError as error:
        raise QwenStackError(f"Cannot read {str(path)!r}: {error.strerror}.") from error
    return CacheReport(
        folder=path,
        num_blocks=len(blocks),
        num_bytes=sum(disk_bytes(block.num_bytes) for block in blocks),
        oldest_use=min((block.modified_at for block in blocks), default=None),
    )
