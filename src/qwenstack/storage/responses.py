"""Responses that tenants keep: what was asked and what was answered, until it expires.

The documents are JSON in the words of whoever writes them; nothing here looks into them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from qwenstack.core.errors import RequestError
from qwenstack.storage.database import Database
from qwenstack.storage.schema import responses
from qwenstack.storage.servers import is_alive

MOST_TURNS = 1024
"""Responses that one conversation may go back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """One response."""

    id: str
    tenant: str
    status: str
    """`in_progress`, or what came of it."""
    created_at_ms: int
    items: str
    """JSON: what was asked."""
    document: str
    """JSON: the response itself."""
    previous_id: str | None = None
    """The response that this one goes on from."""
    owner: str | None = None
    """The server that is making it; None: it is finished."""


class StoredResponses:
    """The responses in a database. A tenant finds its own alone."""

    def __init__(self, database: Database, *, retention_s: float, clock: Callable[[], float] = time.time) -> None:
        """Keep each response for so long."""
        self._database = database
        self._retention_ms = int(retention_s * 1000)
        self._clock = clock

    def put(self, response: StoredResponse) -> None:
        """Keep a response.

        Raises:
            StorageError: the database cannot be written to.
        """
        row = {
            "id": response.id,
            "tenant": response.tenant,
            "status": response.status,
            "created_at_ms": response.created_at_ms,
            "expires_at_ms": response.created_at_ms + self._retention_ms,
            "previous_id": response.previous_id,
            "owner": response.owner,
            "size_bytes": _size_of(response.items, response.document),
            "items": response.items,
            "document": response.document,
        }
        self._database.write(lambda connection: connection.execute(insert(responses).values(**row)))

    def finish(self, response: StoredResponse, *, status: str, document: str) -> bool:
        """Write what came of a response; False where it came to an end, or was deleted, before.

        Raises:
            StorageError: the database cannot be written to.
        """
        changes = {
            "status": status,
            "document": document,
            "owner": None,
            "size_bytes": _size_of(response.items, document),
        }
        is_open = (responses.c.id == response.id) & responses.c.owner.is_not(None)
        return self._database.write(
            lambda connection: connection.execute(update(responses).where(is_open).values(**changes)).rowcount > 0
        )

    def find(self, response_id: str, *, tenant: str) -> StoredResponse | None:
        """Return a tenant's response of this id, None where it has none.

        Raises:
            StorageError: the database cannot be read.
        """
        return self._database.read(lambda connection: self._find(connection, response_id, tenant))

    def conversation(self, response_id: str, *, tenant: str, max_bytes: int) -> list[StoredResponse]:
        """Return a response and those before it, the oldest first; empty where there is none of this id.

        Raises:
            RequestError: it is longer than `max_bytes` or `MOST_TURNS`, or a response in it is gone.
            StorageError: the database cannot be read.
        """

        def read(connection: Connection) -> list[StoredResponse]:
            found: list[StoredResponse] = []
            num_bytes, wanted = 0, response_id
            while (response := self._find(connection, wanted, tenant)) is not None:
                found.append(response)
                num_bytes += _size_of(response.items, response.document)
                if num_bytes > max_bytes or len(found) > MOST_TURNS:
                    raise _conversation_error(
                        f"The conversation before this has more than {MOST_TURNS} turns or {max_bytes} bytes. "
                        "Begin a new one with what matters of it.",
                        "context_length_exceeded",
                    )
                if response.previous_id is None:
                    return found[::-1]
                wanted = response.previous_id
            if found:
                raise _conversation_error(
                    f"The conversation goes back to {wanted!r}, which was deleted or has expired. Begin a new one.",
                    "previous_response_not_found",
                )
            return []

        return self._database.read(read)

    def delete(self, response_id: str, *, tenant: str) -> bool:
        """Forget a tenant's response; return whether there was one.

        Raises:
            StorageError: the database cannot be written to.
        """
        own = (responses.c.id == response_id) & (responses.c.tenant == tenant)
        return self._database.write(lambda connection: connection.execute(delete(responses).where(own)).rowcount > 0)

    def abandoned(self) -> list[StoredResponse]:
        """Return the responses whose servers died while they made them.

        Raises:
            StorageError: the database cannot be read.
        """
        is_abandoned = responses.c.owner.is_not(None) & ~is_alive(responses.c.owner, self._now_ms())
        query = select(responses).where(is_abandoned).limit(1000)
        return self._database.read(lambda connection: [_response_of(row) for row in connection.execute(query)])

    def begun_by(self, owner: str) -> dict[str, str]:
        """Return the ids of what a server has begun and nobody has ended, and whose each is.

        Raises:
            StorageError: the database cannot be read.
        """
        query = select(responses.c.id, responses.c.tenant).where(responses.c.owner == owner)
        return self._database.read(lambda connection: {row.id: row.tenant for row in connection.execute(query)})

    def sweep(self, *, max_tenant_bytes: int) -> int:
        """Forget what has expired, and the oldest of tenants that keep more than so many bytes; return how many.

        Raises:
            StorageError: the database cannot be written to.
        """

        def write(connection: Connection) -> int:
            is_over = responses.c.expires_at_ms <= self._now_ms()
            num_removed = connection.execute(delete(responses).where(is_over)).rowcount
            total = func.sum(responses.c.size_bytes)
            large = select(responses.c.tenant).group_by(responses.c.tenant).having(total > max_tenant_bytes)
            for tenant in connection.execute(large).scalars().all():
                num_removed += _cut(connection, tenant, max_tenant_bytes)
            return num_removed

        return self._database.write(write)

    def _find(self, connection: Connection, response_id: str, tenant: str) -> StoredResponse | None:
        is_own = (responses.c.id == response_id) & (responses.c.tenant == tenant)
        row = connection.execute(select(responses).where(is_own, responses.c.expires_at_ms > self._now_ms())).first()
        return None if row is None else _response_of(row)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _cut(connection: Connection, tenant: str, max_bytes: int) -> int:
    """Remove a tenant's oldest responses until the rest has at most so many bytes."""
    newest = (
        select(responses.c.id, responses.c.size_bytes)
        .where(responses.c.tenant == tenant)
        .order_by(responses.c.created_at_ms.desc(), responses.c.id)
    )
    num_bytes, too_many = 0, list[str]()
    for row in connection.execute(newest):
        num_bytes += row.size_bytes
        if num_bytes > max_bytes:
            too_many.append(row.id)
    for start in range(0, len(too_many), 500):  # far below the most values that a statement may have
        connection.execute(delete(responses).where(responses.c.id.in_(too_many[start : start + 500])))
    return len(too_many)


def _conversation_error(text: str, code: str) -> RequestError:
    return RequestError(text, param="previous_response_id", code=code)


def _size_of(items: str, document: str) -> int:
    return len(items.encode()) + len(document.encode())


def _response_of(row: Row[tuple[object, ...]]) -> StoredResponse:
    return StoredResponse(
        id=row.id,
        tenant=row.tenant,
        status=row.status,
        created_at_ms=row.created_at_ms,
        items=row.items,
        document=row.document,
        previous_id=row.previous_id,
        owner=row.owner,
    )
