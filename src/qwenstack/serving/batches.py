"""Takes batches, and shows how far they are; `batch_runner` runs them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from qwenstack.core.errors import RequestError
from qwenstack.serving.errors import HttpError
from qwenstack.serving.files import no_file
from qwenstack.serving.identity import Access, Identity, KeyRing
from qwenstack.serving.wire.batches import BatchRequest
from qwenstack.storage import StoredBatch, StoredBatches, StoredFiles

WINDOW_S = 24 * 3600


class SavedCaller(msgspec.Struct, frozen=True):
    """Who made a batch, as it is written down."""

    key_id: str
    models: list[str] | None
    subject: str = ""
    expires_at_s: float | None = None

    @classmethod
    def of(cls, caller: Identity) -> SavedCaller:
        """Write an identity down."""
        models = None if caller.models is None else sorted(caller.models)
        return cls(caller.key_id, models, caller.subject, caller.expires_at_s)

    def now(self, tenant: str, keys: KeyRing, *, takes_tokens: bool, now_s: float) -> Identity | None:
        """Return who that is by now; None where what they showed opens nothing any more.

        A token is good until its end, as long as the server takes any; what its issuer says of it since is not asked.
        """
        if self.key_id:
            return keys.holder(self.key_id, now_ms=now_s * 1000)
        if not self.subject:
            return keys.nameless(tenant)
        if not takes_tokens or self.expires_at_s is None or self.expires_at_s <= now_s:
            return None
        return Identity(
            tenant=tenant,
            subject=self.subject,
            accesses=frozenset({Access.INFERENCE}),
            models=None if self.models is None else frozenset(self.models),
            expires_at_s=self.expires_at_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStore:
    """Where batches and their files are kept."""

    batches: StoredBatches
    files: StoredFiles


class Batches:
    """The batches of a server."""

    def __init__(self, store: BatchStore | None, endpoints: Collection[str]) -> None:
        """Keep batches for these endpoints; None: none are taken."""
        self._store = store
        self._endpoints = endpoints
        self.news = asyncio.Event()
        """Set when there is one to run."""

    async def create(self, body: BatchRequest, caller: Identity) -> StoredBatch:
        """Take a batch; when this returns, it is kept and will be run.

        Raises:
            RequestError: the endpoint is none of ours, the file is none of the caller's or is not for batches, or the
                caller has too many unfinished ones.
            StorageError: the database cannot be written to.
        """
        store = self._need_store()
        if body.endpoint not in self._endpoints:
            text = f"`endpoint` is {body.endpoint!r}; batches go to {', '.join(sorted(self._endpoints))}."
            raise RequestError(text, param="endpoint", code="invalid_value")
        file = await asyncio.to_thread(store.files.find, body.input_file_id, tenant=caller.tenant)
        if file is None:
            raise no_file(body.input_file_id)
        if file.purpose != "batch":
            text = f"`input_file_id` is a file for {file.purpose!r}; upload it with the purpose 'batch'."
            raise RequestError(text, param="input_file_id", code="invalid_purpose")
        now_ms = int(time.time() * 1000)
        batch = StoredBatch(
            id=f"batch_{secrets.token_hex(16)}",
            tenant=caller.tenant,
            caller=msgspec.json.encode(SavedCaller.of(caller)).decode(),
            endpoint=body.endpoint,
            input_file_id=file.id,
            metadata=msgspec.json.encode(body.metadata or {}).decode(),
            created_at_ms=now_ms,
            expires_at_ms=now_ms + WINDOW_S * 1000,
        )
        if not await asyncio.to_thread(store.batches.create, batch):
            raise no_file(file.id)
        self.news.set()
        return batch

    async def find(self, batch_id: str, caller: Identity) -> StoredBatch:
        """Return a batch of the caller's.

        Raises:
            HttpError: there is none of this id.
            StorageError: the database cannot be read.
        """
        batch = await asyncio.to_thread(self._need_store().batches.find, batch_id, tenant=caller.tenant)
        if batch is None:
            raise _no_batch(batch_id)
        return batch

    async def page(self, caller: Identity, *, after: str | None, limit: int) -> tuple[list[StoredBatch], bool]:
        """Return some of the caller's batches, the newest first, and whether there are more.

        Raises:
            HttpError: `after` is not one of them.
            StorageError: the database cannot be read.
        """
        store = self._need_store().batches
        page = await asyncio.to_thread(store.page, tenant=caller.tenant, after=after, limit=limit)
        if page is None:
            raise _no_batch(after or "")
        return page

    async def cancel(self, batch_id: str, caller: Identity) -> StoredBatch:
        """Have a batch of the caller's stopped; one that is finished stays as it is.

        Raises:
            HttpError: there is none of this id.
            StorageError: the database cannot be written to.
        """
        batch = await asyncio.to_thread(self._need_store().batches.cancel, batch_id, tenant=caller.tenant)
        if batch is None:
            raise _no_batch(batch_id)
        self.news.set()
        return batch

    def _need_store(self) -> BatchStore:
        if self._store is None:
            text = "This server takes no batches: it has no `storage.files_dir`, or its `storage.url` is off."
            raise HttpError(400, text, code="storage_off")
        return self._store


def _no_batch(batch_id: str) -> HttpError:
    return HttpError(404, f"There is no batch {batch_id[:80]!r}.", code="batch_not_found")
