"""Batches: who runs each, how far it is, and what was answered.

A batch belongs to one server at a time, as long as that server is alive; what another one writes about it is refused.
An answer is written in one transaction with the counts, and the table's key lets no line have two.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, func, insert, or_, select, tuple_, update

from qwenstack.core.errors import RequestError
from qwenstack.storage.database import Database, lock_state
from qwenstack.storage.files import UNFINISHED, StoredFile, insert_file
from qwenstack.storage.schema import batch_answers, batches, files
from qwenstack.storage.servers import is_alive

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
LONGEST_PUT_OFF_S = 600.0
"""A batch that waits is looked at again so often: what it waits for may have come earlier."""
MOST_UNFINISHED = 32
"""Batches of one tenant that wait or run."""
_PAGE_CHARS = 4 << 20
"""Answers read at a time, and one more: that of many embeddings has 16 million characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTokens:
    """How many tokens answers took."""

    input_tokens: int = 0
    cached_tokens: int = 0
    """Those of the input that were not computed again."""
    output_tokens: int = 0
    reasoning_tokens: int = 0
    """Those of the output that were thinking."""


NO_TOKENS = BatchTokens()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch, without its answers."""

    id: str
    tenant: str
    caller: str
    """JSON: who made it and what they might use."""
    endpoint: str
    input_file_id: str
    metadata: str
    """JSON: an object."""
    created_at_ms: int
    expires_at_ms: int
    status: BatchStatus = "validating"
    times: Mapping[str, int] = field(default_factory=dict[str, int])
    """When it came to each status, in milliseconds."""
    errors: str | None = None
    """JSON: what is wrong with the input."""
    num_total: int = 0
    num_completed: int = 0
    num_failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    owner: str | None = None
    """The server that runs it."""
    not_before_ms: int | None = None
    """When it may be run again; None: it never had to wait."""
    tokens: BatchTokens | None = NO_TOKENS
    """What its answers took; None: they were not counted."""


class StoredBatches:
    """The batches in a database. A tenant finds its own alone."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        """Use a database that `open_database` opened."""
        self._database = database
        self._clock = clock

    def create(self, batch: StoredBatch) -> bool:
        """Add a batch; False where its tenant has no such input file.

        Raises:
            RequestError: the tenant has too many unfinished ones.
            StorageError: the database cannot be written to.
        """
        is_input = (files.c.id == batch.input_file_id) & (files.c.tenant == batch.tenant)
        is_unfinished = (batches.c.tenant == batch.tenant) & batches.c.status.in_(UNFINISHED)

        def write(connection: Connection) -> bool:
            lock_state(connection)
            if connection.execute(select(files.c.id).where(is_input)).first() is None:
                return False
            if connection.execute(select(func.count()).where(is_unfinished)).scalar_one() >= MOST_UNFINISHED:
                text = f"{MOST_UNFINISHED} batches of yours are unfinished. Wait for one, or cancel one."
                raise RequestError(text, code="too_many_batches")
            connection.execute(insert(batches).values(**_row_of(batch)))
            return True

        return self._database.write(write)

    def find(self, batch_id: str, *, tenant: str) -> StoredBatch | None:
        """Return a tenant's batch of this id, None where it has none.

        Raises:
            StorageError: the database cannot be read.
        """
        return self._database.read(lambda connection: _find(connection, batch_id, tenant))

    def page(self, *, tenant: str, after: str | None, limit: int) -> tuple[list[StoredBatch], bool] | None:
        """Return some of a tenant's batches, the newest first, and whether there are more; None: no such `after`.

        Raises:
            StorageError: the database cannot be read.
        """

        def read(connection: Connection) -> tuple[list[StoredBatch], bool] | None:
            wanted = [batches.c.tenant == tenant]
            if after is not None:
                last = _find(connection, after, tenant)
                if last is None:
                    return None
                wanted.append(tuple_(batches.c.created_at_ms, batches.c.id) < tuple_(last.created_at_ms, last.id))
            query = select(batches).where(*wanted).limit(limit + 1)
            query = query.order_by(batches.c.created_at_ms.desc(), batches.c.id.desc())
            found = [_batch_of(row) for row in connection.execute(query)]
            return found[:limit], len(found) > limit

        return self._database.read(read)

    def claim(
        self, owner: str, *, running: Collection[str] = (), busy_tenants: Collection[str] = ()
    ) -> StoredBatch | None:
        """Take the batch whose turn it is of those that nobody alive runs and that need not wait; None: there is none.

        The oldest comes first. One that gave its place back has the age of the time when its wait was over, so that
        those who come back again and again pass nobody by.

        Args:
            owner: the server that takes it.
            running: batches that it runs already.
            busy_tenants: tenants whose turn it is not.

        Raises:
            StorageError: the database cannot be written to.
        """
        query = self._next(owner, running=running, busy_tenants=busy_tenants)
        if self._database.read(lambda connection: connection.execute(query).first()) is None:
            return None  # most looks find nothing, and those who only look keep nobody waiting

        def write(connection: Connection) -> StoredBatch | None:
            row = connection.execute(query.with_for_update(skip_locked=True)).first()
            if row is None:
                return None
            connection.execute(update(batches).where(batches.c.id == row.id).values(owner=owner))
            return _batch_of(row)

        return self._database.write(write)

    def is_any_due(self, owner: str, *, running: Collection[str], busy_tenants: Collection[str]) -> bool:
        """Whether `claim` would take one.

        Raises:
            StorageError: the database cannot be read.
        """
        query = self._next(owner, running=running, busy_tenants=busy_tenants)
        return self._database.read(lambda connection: connection.execute(query).first() is not None)

    def _next(
        self, owner: str, *, running: Collection[str], busy_tenants: Collection[str]
    ) -> Select[tuple[object, ...]]:
        now_ms = self._now_ms()
        is_free = or_(batches.c.owner.is_(None), batches.c.owner == owner, ~is_alive(batches.c.owner, now_ms))
        is_wanted = batches.c.status.in_(UNFINISHED) & batches.c.id.not_in(running)
        is_wanted &= batches.c.tenant.not_in(busy_tenants)
        not_before_ms = batches.c.not_before_ms
        # Nobody waits for longer than that: it was a clock that has been set back since.
        is_out_of_time = not_before_ms > now_ms + int(LONGEST_PUT_OFF_S * 1000)
        is_due = or_(not_before_ms.is_(None), not_before_ms <= now_ms, is_out_of_time)
        since_ms = func.coalesce(not_before_ms, batches.c.created_at_ms)
        return select(batches).where(is_wanted, is_free, is_due).order_by(since_ms, batches.c.id).limit(1)

    def release(self, owner: str) -> None:
        """Leave all batches of a server to others.

        Raises:
            StorageError: the database cannot be written to.
        """
        own = (batches.c.owner == owner) & batches.c.status.in_(UNFINISHED)
        self._database.write(lambda connection: connection.execute(update(batches).where(own).values(owner=None)))

    def put_off(self, batch_id: str, owner: str, *, until_ms: int) -> bool:
        """Leave a batch to whoever is there at a time; False where it is not in progress, or another server's.

        Raises:
            StorageError: the database cannot be written to.
        """
        is_own = (batches.c.id == batch_id) & (batches.c.owner == owner) & (batches.c.status == "in_progress")
        changes = update(batches).where(is_own).values(owner=None, not_before_ms=until_ms)
        return self._database.write(lambda connection: connection.execute(changes).rowcount > 0)

    def advance(self, batch_id: str, owner: str, *, since: BatchStatus, to: BatchStatus, **changes: int) -> bool:
        """Let a batch go from one status to the next; False where it is in another, or another server's.

        Raises:
            StorageError: the database cannot be written to.
        """
        is_own = (batches.c.id == batch_id) & (batches.c.owner == owner) & (batches.c.status == since)
        return self._database.write(lambda connection: self._move(connection, is_own, to, changes))

    def cancel(self, batch_id: str, *, tenant: str) -> StoredBatch | None:
        """Have a tenant's batch stopped at once, if it is not finished; return it, None where there is none.

        Raises:
            StorageError: the database cannot be written to.
        """
        is_running = (batches.c.id == batch_id) & batches.c.status.in_(("validating", "in_progress"))
        is_running &= batches.c.tenant == tenant

        def write(connection: Connection) -> StoredBatch | None:
            self._move(connection, is_running, "cancelling", {"not_before_ms": None})
            return _find(connection, batch_id, tenant)

        return self._database.write(write)

    def is_going_on(self, batch_id: str, owner: str) -> bool:
        """Whether a batch is in progress, and this server's.

        Raises:
            StorageError: the database cannot be read.
        """
        is_own = (batches.c.id == batch_id) & (batches.c.owner == owner) & (batches.c.status == "in_progress")
        query = select(batches.c.id).where(is_own)
        return self._database.read(lambda connection: connection.execute(query).first() is not None)

    def answer(
        self, batch_id: str, owner: str, *, number: int, line: str, is_error: bool, tokens: BatchTokens = NO_TOKENS
    ) -> bool:
        """Keep the answer to a line and what it took, once; False where the batch does not go on, or another runs it.

        Raises:
            StorageError: the database cannot be written to, or the line has an answer.
        """
        is_own = (batches.c.id == batch_id) & (batches.c.owner == owner) & (batches.c.status == "in_progress")
        count = batches.c.num_failed if is_error else batches.c.num_completed
        sums = {batches.c[name]: batches.c[name] + number for name, number in asdict(tokens).items()}
        counting = update(batches).where(is_own).values({count: count + 1, **sums})

        def write(connection: Connection) -> bool:
            if connection.execute(counting).rowcount == 0:
                return False
            row = {"batch_id": batch_id, "number": number, "is_error": is_error, "line": line}
            connection.execute(insert(batch_answers).values(**row))
            return True

        return self._database.write(write)

    def answered(self, batch_id: str) -> set[int]:
        """Return the numbers of the lines that have an answer.

        Raises:
            StorageError: the database cannot be read.
        """
        query = select(batch_answers.c.number).where(batch_answers.c.batch_id == batch_id)
        return self._database.read(lambda connection: set(connection.execute(query).scalars()))

    def answers(self, batch_id: str, *, is_error: bool) -> Iterator[str]:
        """Yield the answers in the order of their lines, a few megabytes read at a time.

        Raises:
            StorageError: the database cannot be read.
        """
        last = -1
        while True:
            wanted = (batch_answers.c.batch_id == batch_id) & (batch_answers.c.is_error == is_error)
            query = select(batch_answers.c.number, batch_answers.c.line).where(wanted, batch_answers.c.number > last)
            query = query.order_by(batch_answers.c.number)
            page = self._database.read(lambda connection, query=query: _read_page(connection, query))
            if not page:
                return
            last = page[-1][0]
            page.reverse()
            while page:  # what is written is not held any more
                yield page.pop()[1]

    def answered_chars(self, batch_id: str) -> int:
        """Return how many characters all the answers have.

        Raises:
            StorageError: the database cannot be read.
        """
        total = func.coalesce(func.sum(func.length(batch_answers.c.line)), 0)
        query = select(total).where(batch_answers.c.batch_id == batch_id)
        return int(self._database.read(lambda connection: connection.execute(query).scalar_one()))

    def finish(
        self,
        batch_id: str,
        owner: str,
        *,
        since: BatchStatus,
        to: BatchStatus,
        output: StoredFile | None,
        failures: StoredFile | None,
        errors: str | None,
    ) -> bool:
        """Give a batch its files, whose contents are sealed, and its last status, in one transaction.

        False where it is in another status, or another server's: then nothing is written.

        Raises:
            StorageError: the database cannot be written to.
        """
        is_own = (batches.c.id == batch_id) & (batches.c.owner == owner) & (batches.c.status == since)
        changes: dict[str, object] = {
            "output_file_id": output and output.id,
            "error_file_id": failures and failures.id,
            "errors": errors,
            "owner": None,
        }

        def write(connection: Connection) -> bool:
            if not self._move(connection, is_own, to, changes):
                return False
            for file in (output, failures):
                if file is not None:
                    insert_file(connection, file)
            connection.execute(delete(batch_answers).where(batch_answers.c.batch_id == batch_id))
            return True

        return self._database.write(write)

    def sweep(self, *, retention_s: float) -> int:
        """Forget batches that ended and were made so long ago; return how many.

        Raises:
            StorageError: the database cannot be written to.
        """
        is_old = batches.c.status.not_in(UNFINISHED)
        is_old &= batches.c.created_at_ms < self._now_ms() - int(retention_s * 1000)
        return self._database.write(lambda connection: connection.execute(delete(batches).where(is_old)).rowcount)

    def _move(
        self, connection: Connection, which: ColumnElement[bool], to: BatchStatus, changes: Mapping[str, object]
    ) -> bool:
        """Change the status of one batch and note the time; return whether it was there to be changed."""
        row = connection.execute(select(batches.c.id, batches.c.times).where(which).with_for_update()).first()
        if row is None:
            return False
        times = json.dumps({**json.loads(row.times), to: self._now_ms()})
        values = {"status": to, "times": times, **changes}
        return connection.execute(update(batches).where(which).values(**values)).rowcount > 0

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _find(connection: Connection, batch_id: str, tenant: str) -> StoredBatch | None:
    own = (batches.c.id == batch_id) & (batches.c.tenant == tenant)
    row = connection.execute(select(batches).where(own)).first()
    return None if row is None else _batch_of(row)


def _read_page(connection: Connection, query: Select[int, str]) -> list[tuple[int, str]]:
    """Read the first rows, until they have so many characters; those behind them do not come from the database."""
    page: list[tuple[int, str]] = []
    num_chars = 0
    with connection.execution_options(stream_results=True, max_row_buffer=1).execute(query) as rows:
        for number, line in rows:
            page.append((number, line))
            num_chars += len(line)
            if num_chars >= _PAGE_CHARS:
                break
    return page


def _row_of(batch: StoredBatch) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(batch, name) for name in StoredBatch.__dataclass_fields__}
    tokens = {} if batch.tokens is None else asdict(batch.tokens)
    del row["tokens"]
    return row | tokens | {"times": json.dumps(dict(batch.times))}


def _batch_of(row: Row[tuple[object, ...]]) -> StoredBatch:
    fields = {name: getattr(row, name) for name in StoredBatch.__dataclass_fields__ if name != "tokens"}
    counts = {name: getattr(row, name) for name in BatchTokens.__dataclass_fields__}
    tokens = None if None in counts.values() else BatchTokens(**counts)
    fields["times"] = json.loads(row.times)
    return StoredBatch(**fields, tokens=tokens)
