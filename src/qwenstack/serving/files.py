"""Takes files of tenants, under a quota, and gives them back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Generator
from typing import BinaryIO, Literal

from qwenstack.core.errors import CapacityError
from qwenstack.serving.errors import HttpError
from qwenstack.serving.form import FormReader
from qwenstack.serving.identity import Identity
from qwenstack.serving.wire.files import UploadFields, read_fields
from qwenstack.storage import Draft, FileInUseError, StoredFile, StoredFiles

MOST_UPLOADS = 4
"""Of one tenant at one time: what is under way is not in its quota yet."""
_CHUNK_BYTES = 256 * 1024


class Files:
    """The files of a server."""

    def __init__(self, store: StoredFiles | None, *, max_file_bytes: int) -> None:
        """Keep files in `store`; None: none are kept. One may have so many bytes."""
        self._store = store
        self._max_file_bytes = max_file_bytes
        self._uploads: Counter[str] = Counter()

    async def upload(self, chunks: AsyncIterable[bytes], content_type: str, caller: Identity) -> StoredFile:
        """Take a form with a file; when this returns, the file is on the disk, and if it raises, nothing is.

        Raises:
            RequestError: the form is wrong, or the file more than one may have or the caller may keep.
            CapacityError: the caller has too many uploads under way.
            StorageError: the disk or the database does not take it.
        """
        store = self._need_store()
        reader = FormReader(content_type)
        with self._counted(caller.tenant):
            room = await asyncio.to_thread(store.room, caller.tenant)
            draft = await asyncio.to_thread(store.begin)
            try:
                async for chunk in chunks:
                    await self._write(draft, reader.feed(chunk), room)
                fields = read_fields(reader)
                return await asyncio.to_thread(_keep, store, draft, fields, caller.tenant)
            except BaseException:
                await asyncio.to_thread(draft.discard)
                raise

    async def find(self, file_id: str, caller: Identity) -> StoredFile:
        """Return a file of the caller's.

        Raises:
            HttpError: there is none of this id.
            StorageError: the database cannot be read.
        """
        file = await asyncio.to_thread(self._need_store().find, file_id, tenant=caller.tenant)
        if file is None:
            raise no_file(file_id)
        return file

    async def page(
        self, caller: Identity, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
    ) -> tuple[list[StoredFile], bool]:
        """Return some of the caller's files by age, and whether there are more.

        Raises:
            HttpError: `after` is not one of them.
            StorageError: the database cannot be read.
        """
        store = self._need_store()
        page = await asyncio.to_thread(
            store.page, tenant=caller.tenant, after=after, limit=limit, order=order, purpose=purpose
        )
        if page is None:
            raise no_file(after or "")
        return page

    async def read(self, file: StoredFile) -> AsyncGenerator[bytes]:
        """Return the content in pieces; it is open, and whole whatever becomes of the file, when this returns.

        Raises:
            HttpError: it is gone.
        """
        try:
            content = await asyncio.to_thread(self._need_store().open, file)
        except FileNotFoundError:
            raise no_file(file.id) from None
        return _pieces_of(content)

    async def delete(self, file_id: str, caller: Identity) -> None:
        """Remove a file of the caller's.

        Raises:
            HttpError: there is none of this id, or a batch reads it.
            StorageError: the database cannot be written to.
        """
        try:
            is_gone = await asyncio.to_thread(self._need_store().delete, file_id, tenant=caller.tenant)
        except FileInUseError as error:
            raise HttpError(409, str(error), code="file_in_use") from None
        if not is_gone:
            raise no_file(file_id)

    async def _write(self, draft: Draft, data: bytes, room: int) -> None:
        num_bytes = draft.num_bytes + len(data)
        if num_bytes > self._max_file_bytes:
            text = f"The file has more than {self._max_file_bytes} bytes. Send it in several."
            raise HttpError(413, text, code="file_too_large", param="file", headers={"Connection": "close"})
        if num_bytes > room:
            text = "Your files together would have more bytes than you may keep. Delete some."
            raise HttpError(413, text, code="quota_exceeded", param="file", headers={"Connection": "close"})
        if data:
            await asyncio.to_thread(draft.write, data)

    @contextlib.contextmanager
    def _counted(self, tenant: str) -> Generator[None]:
        if self._uploads[tenant] >= MOST_UPLOADS:
            raise CapacityError(f"{MOST_UPLOADS} uploads of yours are under way. Wait for one to end.")
        self._uploads[tenant] += 1
        try:
            yield
        finally:
            self._uploads[tenant] -= 1
            self._uploads += Counter()  # forgets tenants without uploads

    def _need_store(self) -> StoredFiles:
        if self._store is None:
            text = "This server keeps no files: it has no `storage.files_dir`, or its `storage.url` is off."
            raise HttpError(400, text, code="storage_off")
        return self._store


def no_file(file_id: str) -> HttpError:
    """Say that there is no such file."""
    text = f"There is no file {file_id[:80]!r}; it was deleted or has expired."
    return HttpError(404, text, code="file_not_found")


def _keep(store: StoredFiles, draft: Draft, fields: UploadFields, tenant: str) -> StoredFile:
    return store.keep(
        draft, tenant=tenant, purpose=fields.purpose, filename=fields.filename, lifetime_s=fields.lifetime_s
    )


async def _pieces_of(content: BinaryIO) -> AsyncGenerator[bytes]:
    with content:
        while piece := await asyncio.to_thread(content.read, _CHUNK_BYTES):
            yield piece
