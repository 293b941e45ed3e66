"""Files that tenants keep: a row for each, and its content in a folder under the server's own id.

The content is on the disk before the row, and goes after it: a crash between leaves at most a content without a row,
which the next sweep removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, or_, select, tuple_

from qwenstack.core.errors import RequestError
from qwenstack.storage.content_folder import ContentFolder, Draft
from qwenstack.storage.database import Database, lock_state
from qwenstack.storage.schema import batches, files

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
"""The states of a batch that still reads its input."""
MOST_FILES = 10_000
"""Of one tenant: the longest list that OpenAI's wire gives out at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file, without its content."""

    id: str
    tenant: str
    purpose: str
    filename: str
    """What its owner calls it: a label, by which nothing is found."""
    size_bytes: int
    created_at_ms: int
    expires_at_ms: int | None = None


class FileInUseError(RequestError):
    """A batch that is not finished reads the file."""


class StoredFiles:
    """The files of a database and a folder. A tenant finds its own alone."""

    def __init__(
        self, database: Database, folder: Path, *, quota_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        """Use a folder, making it where there is none; a tenant may keep so many bytes.

        Raises:
            StorageError: the folder cannot be used.
        """
        self._database = database
        self._folder = ContentFolder(folder, clock=clock)
        self._quota_bytes = quota_bytes
        self._clock = clock

    def room(self, tenant: str) -> int:
        """Return how many bytes a tenant may add.

        Raises:
            StorageError: the database cannot be read.
        """
        return self._quota_bytes - self._database.read(lambda connection: _used(connection, tenant)[0])

    def begin(self) -> Draft:
        """Begin a content.

        Raises:
            StorageError: the disk does not take it.
        """
        return self._folder.begin()

    def keep(
        self, draft: Draft, *, tenant: str, purpose: str, filename: str, lifetime_s: float | None = None
    ) -> StoredFile:
        """Make a draft a tenant's file; when this returns, all of it is on the disk, and if it raises, nothing is.

        Raises:
            RequestError: it is more than the tenant may keep.
            StorageError: the disk or the database does not take it.
        """
        file = self.describe(draft, tenant=tenant, purpose=purpose, filename=filename, lifetime_s=lifetime_s)
        try:
            draft.seal()
            self._database.write(lambda connection: self._insert_within_quota(connection, file))
        except BaseException:
            draft.discard()
            raise
        return file

    def describe(
        self, draft: Draft, *, tenant: str, purpose: str, filename: str, lifetime_s: float | None = None
    ) -> StoredFile:
        """Say what a draft will be; `insert_file` makes it so within a transaction, once the draft is sealed."""
        now_ms = int(self._clock() * 1000)
        return StoredFile(
            id=draft.id,
            tenant=tenant,
            purpose=purpose,
            filename=filename,
            size_bytes=draft.num_bytes,
            created_at_ms=now_ms,
            expires_at_ms=None if lifetime_s is None else now_ms + int(lifetime_s * 1000),
        )

    def find(self, file_id: str, *, tenant: str) -> StoredFile | None:
        """Return a tenant's file of this id, None where it has none.

        Raises:
            StorageError: the database cannot be read.
        """
        return self._database.read(lambda connection: self._find(connection, file_id, tenant))

    def find_input(self, file_id: str, *, tenant: str) -> StoredFile | None:
        """Return a tenant's file that an unfinished batch reads, though it may have expired; None where there is none.

        Raises:
            StorageError: the database cannot be read.
        """
        own = (files.c.id == file_id) & (files.c.tenant == tenant)
        query = select(files).where(own, or_(self._is_alive(), _is_in_use()))
        row = self._database.read(lambda connection: connection.execute(query).first())
        return None if row is None else _file_of(row)

    def page(
        self, *, tenant: str, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
    ) -> tuple[list[StoredFile], bool] | None:
        """Return some of a tenant's files by age, and whether there are more; None where `after` is not one of them.

        Raises:
            StorageError: the database cannot be read.
        """

        def read(connection: Connection) -> tuple[list[StoredFile], bool] | None:
            wanted = [files.c.tenant == tenant, self._is_alive()]
            wanted += [] if purpose is None else [files.c.purpose == purpose]
            if after is not None:
                last = self._find(connection, after, tenant)
                if last is None:
                    return None
                key, place = tuple_(files.c.created_at_ms, files.c.id), tuple_(last.created_at_ms, last.id)
                wanted.append(key > place if order == "asc" else key < place)
            columns = (files.c.created_at_ms, files.c.id)
            query = select(files).where(*wanted).limit(limit + 1)
            query = query.order_by(*(columns if order == "asc" else (column.desc() for column in columns)))
            found = [_file_of(row) for row in connection.execute(query)]
            return found[:limit], len(found) > limit

        return self._database.read(read)

    def open(self, file: StoredFile) -> BinaryIO:
        """Open a file's content for reading.

        Raises:
            FileNotFoundError: it is gone.
        """
        return self._folder.open(file.id)

    def delete(self, file_id: str, *, tenant: str) -> bool:
        """Remove a tenant's file; return whether there was one.

        Raises:
            FileInUseError: a batch reads it.
            StorageError: the database cannot be written to.
        """

        def write(connection: Connection) -> bool:
            if self._find(connection, file_id, tenant) is None:
                return False
            own = (files.c.id == file_id) & (files.c.tenant == tenant)
            if connection.execute(delete(files).where(own, ~_is_in_use())).rowcount == 0:
                text = f"A batch that is not finished reads the file {file_id!r}. Cancel the batch, or wait for it."
                raise FileInUseError(text, code="file_in_use")
            return True

        is_gone = self._database.write(write)
        if is_gone:
            self._folder.remove(file_id)
        return is_gone

    def sweep(self) -> int:
        """Remove files that have expired, and contents without a row; return how many.

        Raises:
            StorageError: the database cannot be reached.
        """

        def write(connection: Connection) -> list[str]:
            is_over = ~self._is_alive() & ~_is_in_use()
            expired = list(connection.execute(select(files.c.id).where(is_over).limit(500)).scalars())
            connection.execute(delete(files).where(files.c.id.in_(expired)))
            return expired

        expired = self._database.write(write)
        for file_id in expired:
            self._folder.remove(file_id)
        owned = self._database.read(lambda connection: set(connection.execute(select(files.c.id)).scalars()))
        return len(expired) + self._folder.remove_orphans(owned)

    def _find(self, connection: Connection, file_id: str, tenant: str) -> StoredFile | None:
        own = (files.c.id == file_id) & (files.c.tenant == tenant)
        row = connection.execute(select(files).where(own, self._is_alive())).first()
        return None if row is None else _file_of(row)

    def _is_alive(self) -> ColumnElement[bool]:
        return or_(files.c.expires_at_ms.is_(None), files.c.expires_at_ms > int(self._clock() * 1000))

    def _insert_within_quota(self, connection: Connection, file: StoredFile) -> None:
        lock_state(connection)  # two uploads that fit alone may not fit together
        used_bytes, num_files = _used(connection, file.tenant)
        if used_bytes + file.size_bytes > self._quota_bytes:
            raise quota_error(self._quota_bytes)
        if num_files >= MOST_FILES:
            text = f"You keep {num_files} files; at most {MOST_FILES} are kept. Delete some."
            raise RequestError(text, param="file", code="quota_exceeded")
        insert_file(connection, file)


def quota_error(quota_bytes: int) -> RequestError:
    """Say that a tenant keeps as much as it may."""
    text = f"Your files together may have {quota_bytes} bytes, and with this one they would have more. Delete some."
    return RequestError(text, param="file", code="quota_exceeded")


def insert_file(connection: Connection, file: StoredFile) -> None:
    """Write the row of a file whose content is sealed."""
    row = {name: getattr(file, name) for name in StoredFile.__dataclass_fields__}
    connection.execute(insert(files).values(**row))


def _used(connection: Connection, tenant: str) -> tuple[int, int]:
    query = select(func.coalesce(func.sum(files.c.size_bytes), 0), func.count()).where(files.c.tenant == tenant)
    used_bytes, num_files = connection.execute(query).one()
    return int(used_bytes), num_files


def _is_in_use() -> ColumnElement[bool]:
    return files.c.id.in_(select(batches.c.input_file_id).where(batches.c.status.in_(UNFINISHED)))


def _file_of(row: Row[tuple[object, ...]]) -> StoredFile:
    return StoredFile(**{name: getattr(row, name) for name in StoredFile.__dataclass_fields__})
