"""A folder that is this user's alone, and files in it that appear whole or not at all.

The folder is opened once and its files by their names in it, so that nobody can lead us elsewhere by putting a link in
its place later. Files are 0600, the folder 0700. Whoever reads checks what is read: nothing is flushed to the disk,
and after a power failure a file may have the right name and the wrong content.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenstack.core.errors import ConfigError

_TEMPORARY_SUFFIX = ".tmp"
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_NOT_OURS = frozenset({errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.EISDIR})
"""What opening a link, somebody else's file, a pipe or a folder gives."""


class ForeignFileError(OSError):
    """What has the name of one of our files is none: a link, another user's, open to others, or of another size."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One regular file of a folder."""

    name: str
    num_bytes: int
    modified_at: float
    """Seconds since 1970."""


class PrivateFolder:
    """An open folder; its descriptor is closed with the last reference, so that threads need no agreement on it."""

    def __init__(self, path: Path) -> None:
        """Open a folder, making it where there is none.

        Raises:
            ConfigError: it is not a folder, or others can write to it.
            OSError: it cannot be made or opened.
        """
        self.path = path
        self._descriptor = -1
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True)
        try:
            self._descriptor = os.open(path, _READ | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ConfigError(f"{str(path)!r} is a link or a file; name a folder.") from error
            raise
        status = os.fstat(self._descriptor)
        if status.st_uid != os.geteuid():
            raise ConfigError(f"{str(path)!r} belongs to another user (uid {status.st_uid}); name a folder of yours.")
        if status.st_mode & 0o022:
            raise ConfigError(
                f"{str(path)!r} can be written to by others (mode {stat.S_IMODE(status.st_mode):04o}); "
                "name a folder that is yours alone, which is made where there is none."
            )
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(self._descriptor, 0o700)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, name: str, num_bytes: int) -> tuple[bytes, float]:
        """Return a file's content and when it was modified.

        Raises:
            FileNotFoundError: there is none.
            ForeignFileError: it is not a regular file of this user alone with that many bytes; nothing was read.
            OSError: the disk failed.
        """
        try:
            descriptor = os.open(name, _READ, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno in _NOT_OURS:
                raise ForeignFileError(name) from error
            raise
        try:
            status = os.fstat(descriptor)
            is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
            if not is_ours or status.st_size != num_bytes:
                raise ForeignFileError(name)
            return os.read(descriptor, num_bytes), status.st_mtime
        finally:
            os.close(descriptor)

    def modified_at(self, name: str) -> float | None:
        """Return when a file was modified, in seconds since 1970; None if there is none."""
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return None

    def write(self, name: str, parts: Sequence[bytes | memoryview], *, modified_at: float) -> None:
        """Put a file in place at once, over one of the same name.

        Raises:
            OSError: the disk is full or failed; the folder is as before.
        """
        temporary = f".{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=self._descriptor)
        try:
            # Held until the end: it tells `remove_leftovers` of another process that the writer lives.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.writev(descriptor, parts) != sum(len(part) for part in parts):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.utime(descriptor, (modified_at, modified_at))
            with contextlib.suppress(FileNotFoundError):  # taken for a leftover before it was locked: not kept, then
                os.replace(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            self.remove(temporary)
            raise
        finally:
            os.close(descriptor)

    def create(self, name: str, content: bytes) -> None:
        """Make a file that is not there yet, whole and on the disk.

        Raises:
            FileExistsError: there is one; it is left alone.
            OSError: it cannot be written.
        """
        while not self._try_to_create(name, content):
            pass

    def _try_to_create(self, name: str, content: bytes) -> bool:
        """Do so; False if the file was taken for a leftover before it was locked."""
        temporary = f".{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=self._descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, content)
            os.fsync(descriptor)
            os.link(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        finally:
            self.remove(temporary)
            os.close(descriptor)
        return True

    def touch(self, name: str, at: float) -> None:
        """Set when a file was modified."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(name, (at, at), dir_fd=self._descriptor, follow_symlinks=False)

    def remove(self, name: str) -> bool:
        """Remove a file or a link; False if there is none, or it is a folder."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            return False
        return True

    def entries(self) -> Iterator[FileEntry]:
        """Yield all regular files; one that vanishes meanwhile is left out."""
        # Opened anew: a descriptor has one place in the list, whoever reads it.
        descriptor = os.open(".", _READ | os.O_DIRECTORY, dir_fd=self._descriptor)
        try:
            with os.scandir(descriptor) as found:
                for entry in found:
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False):
                            status = entry.stat(follow_symlinks=False)
                            yield FileEntry(entry.name, status.st_size, status.st_mtime)
        finally:
            os.close(descriptor)

    def remove_leftovers(self) -> None:
        """Remove what writers began and, being dead, will not end."""
        for entry in list(self.entries()):
            if entry.name.endswith(_TEMPORARY_SUFFIX):
                with contextlib.suppress(FileNotFoundError, BlockingIOError):
                    descriptor = os.open(entry.name, _READ, dir_fd=self._descriptor)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        self.remove(entry.name)
                    finally:
                        os.close(descriptor)

    def free_bytes(self) -> int:
        """Return what this user may still write to the disk."""
        system = os.fstatvfs(self._descriptor)
        return system.f_bavail * system.f_frsize
