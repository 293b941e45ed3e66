"""A folder of this user's alone that holds the contents of files, each under the id that the server gave it.

What is written is on the disk before it has its name. Names of clients never come here.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO

from qwenstack.core.errors import StorageError

_ID = re.compile(r"file-[0-9a-f]{32}")
_UNFINISHED = re.compile(r"file-[0-9a-f]{32}\.part")
ORPHAN_AGE_S = 3600.0
"""What nobody owns is removed when it is so old: an upload has ten minutes, and what it became gets its owner next."""


class Draft:
    """A content that is being written; nobody sees it before `seal`."""

    def __init__(self, folder: int, file_id: str) -> None:
        """Make an empty one in an open folder."""
        self.id = file_id
        self.num_bytes = 0
        self._folder = folder
        self._file: BinaryIO | None = os.fdopen(
            _open(folder, f"{file_id}.part", os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb"
        )

    def write(self, data: bytes) -> None:
        """Add to the content.

        Raises:
            StorageError: the disk does not take it.
        """
        assert self._file is not None
        with _telling():
            self._file.write(data)
        self.num_bytes += len(data)

    def seal(self) -> None:
        """Give the content its name; when this returns, it is on the disk.

        Raises:
            StorageError: the disk does not take it.
        """
        assert self._file is not None
        with _telling():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(f"{self.id}.part", self.id, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        self._file = None

    def discard(self) -> None:
        """Leave nothing behind, sealed or not."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be flushed is not wanted
                self._file.close()
            self._file = None
        for name in (self.id, f"{self.id}.part"):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._folder)


class ContentFolder:
    """The folder; it is opened once, so that nobody can lead us elsewhere by a link in its place."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open a folder, making it where there is none.

        Raises:
            StorageError: it cannot be made, or is not this user's.
        """
        self._clock = clock
        with _telling(f"The folder {str(path)!r} cannot be used"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if os.fstat(self._folder).st_uid != os.geteuid():
                raise StorageError(f"The folder {str(path)!r} is another user's; choose one with `storage.files_dir`.")
            os.fchmod(self._folder, 0o700)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._folder)

    def begin(self) -> Draft:
        """Begin a content under a new id.

        Raises:
            StorageError: the disk does not take it.
        """
        with _telling():
            return Draft(self._folder, f"file-{secrets.token_hex(16)}")

    def open(self, file_id: str) -> BinaryIO:
        """Open a content for reading.

        Raises:
            FileNotFoundError: there is none of this id.
        """
        if not _ID.fullmatch(file_id):
            raise FileNotFoundError(file_id)
        return os.fdopen(_open(self._folder, file_id, os.O_RDONLY | os.O_NONBLOCK), "rb")

    def remove(self, file_id: str) -> None:
        """Remove a content, if there is one of this id."""
        if _ID.fullmatch(file_id):
            with contextlib.suppress(FileNotFoundError), _telling():
                os.unlink(file_id, dir_fd=self._folder)

    def remove_orphans(self, owned: Collection[str]) -> int:
        """Remove old contents that are not owned, and those that never got their names; return how many."""
        num_removed = 0
        latest = self._clock() - ORPHAN_AGE_S
        with os.scandir(self._folder) as entries:
            for entry in entries:
                is_ours = _UNFINISHED.fullmatch(entry.name) or (_ID.fullmatch(entry.name) and entry.name not in owned)
                with contextlib.suppress(FileNotFoundError):
                    if is_ours and entry.stat(follow_symlinks=False).st_mtime <= latest:
                        os.unlink(entry.name, dir_fd=self._folder)
                        num_removed += 1
        return num_removed


def _open(folder: int, name: str, flags: int) -> int:
    return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600, dir_fd=folder)


@contextlib.contextmanager
def _telling(what: str = "The file cannot be written"):
    """Say what the system refuses in our words; that there is no such file is for the caller to say."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror}.") from error
