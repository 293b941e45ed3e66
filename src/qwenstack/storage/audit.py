"""Who did what: an append-only log in which each entry's hash covers the one before it.

Whoever changes, removes or reorders entries in the database breaks the chain, and `AuditLog.verify` says where. To cut
off the newest entries as well as the note of where the chain ends leaves a chain that is whole: keep the hash that
`verify` prints somewhere else to notice that.

The oldest entries can be taken out (`AuditLog.prune`): an entry of its own then says how far, with the hash of the last
one that was removed, and the check begins there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile

from sqlalchemy import Connection, Row, RowMapping, delete, func, insert, select, update

from qwenstack.core.errors import StorageError
from qwenstack.storage.database import Database, lock_state
from qwenstack.storage.schema import audit, state

_PAGE = 1000
"""Entries read at a time."""
_PRUNE_PAGE = 20_000
"""Entries removed in one transaction, during which nobody else can write: 0.6 s
(`python benches/storage.py`, two busy cores)."""
_PRUNE = "audit.prune"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """Something that happened, as it is written down."""

    actor: str
    """Who: a key's id, or how somebody on the machine itself came in, such as `command line`."""
    action: str
    """What, such as `key.create`."""
    subject: str = ""
    """To what: an id, a route, a model."""
    outcome: str = "ok"
    details: Mapping[str, object] = field(default_factory=dict[str, object])
    """More, as JSON can hold it; never secrets, and never what users wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A record in the log."""

    seq: int
    at_ms: int
    """Milliseconds since 1970, by the clock of whoever wrote it."""
    record: AuditRecord
    hash: bytes

    def document(self) -> dict[str, object]:
        """Return it as commands and the administration show it; the hash in hexadecimal."""
        return {"seq": self.seq, "at_ms": self.at_ms, **asdict(self.record), "hash": self.hash.hex()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What came of checking the chain."""

    num_entries: int
    last_hash: bytes
    broken_at: int | None
    """The first entry that is missing or is not what its hash says; None: all are whole."""
    pruned_through: int
    """The last entry that was taken out on purpose; 0: none was."""
    has_expected: bool
    """Whether the hash that was asked for is the chain's at some entry; true where none was."""


class AuditLog:
    """The log of one database."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        """Use a database that `open_database` opened."""
        self._database = database
        self._clock = clock

    def append(self, records: Sequence[AuditRecord]) -> None:
        """Write records down, in this order, all of them or none.

        Raises:
            StorageError: the database cannot be written to.
        """
        if records:
            self._database.write(lambda connection: self.append_within(connection, records))

    def append_within(self, connection: Connection, records: Sequence[AuditRecord]) -> None:
        """Do the same as a part of a transaction, so that an act and its record are written together."""
        lock_state(connection)
        seq, digest = connection.execute(select(state.c.audit_seq, state.c.audit_hash)).one()
        rows: list[dict[str, object]] = []
        for record in records:
            seq += 1
            row = _row_of(record, seq=seq, at_ms=int(self._clock() * 1000))
            digest = _hash(digest, row)
            rows.append({**row, "hash": digest})
        connection.execute(insert(audit), rows)
        connection.execute(update(state).values(audit_seq=seq, audit_hash=digest))

    def newest(self, limit: int = 100, *, before: int | None = None) -> list[AuditEntry]:
        """Return entries, the newest first; with `before`, those older than that number."""
        query = select(audit).order_by(audit.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.seq < before)
        return self._database.read(lambda connection: [_entry_of(row) for row in connection.execute(query)])

    def after(self, seq: int, limit: int = 100) -> list[AuditEntry]:
        """Return the entries that follow a number, the oldest first."""
        query = select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(limit)
        return self._database.read(lambda connection: [_entry_of(row) for row in connection.execute(query)])

    def prune(self, before_ms: int, *, actor: str) -> int:
        """Remove the oldest entries, up to the first one that is not older than a time; return how many.

        How far, and the hash of the last one, is the next entry of the log. What is removed is checked before.

        Raises:
            StorageError: an entry is not what was written, so that it must stay as evidence; those before it are
                removed. Or the database cannot be written to.
        """
        num_removed = 0
        while True:
            num = self._database.write(lambda connection: self._prune_page(connection, before_ms, actor))
            num_removed += num
            if num < _PRUNE_PAGE:
                return num_removed

    def _prune_page(self, connection: Connection, before_ms: int, actor: str) -> int:
        lock_state(connection)
        rows = connection.execute(select(audit).order_by(audit.c.seq).limit(_PRUNE_PAGE)).mappings().all()
        old = list(takewhile(lambda row: row["at_ms"] < before_ms, rows))
        if not old:
            return 0
        walk = _Walk(*_checkpoint(connection))
        for row in old:
            if not walk.step(row):
                raise StorageError(f"Entry {walk.seq + 1} of the audit log is missing or changed; it is not removed.")
        connection.execute(delete(audit).where(audit.c.seq <= walk.seq))
        details = {"through": walk.seq, "hash": walk.digest.hex(), "num_entries": len(old), "before_ms": before_ms}
        self.append_within(connection, [AuditRecord(actor=actor, action=_PRUNE, subject="audit", details=details)])
        return len(old)

    def verify(self, expected: bytes | None = None) -> Verification:
        """Compute the whole chain again, and look in it for a hash that was the last one once."""
        return self._database.read(lambda connection: _verify(connection, expected))


class _Walk:
    """Goes along the chain, from one entry that is known to be whole to the next."""

    def __init__(self, seq: int, digest: bytes) -> None:
        self.seq = seq
        self.digest = digest

    def step(self, row: Mapping[str, object] | RowMapping) -> bool:
        """Take the next entry, if it is that and whole."""
        try:
            digest = _hash(self.digest, row)
        except TypeError:  # a column of another type
            return False
        if row["seq"] != self.seq + 1 or digest != row["hash"]:
            return False
        self.seq, self.digest = self.seq + 1, digest
        return True


def _verify(connection: Connection, expected: bytes | None) -> Verification:
    first = _checkpoint(connection)
    walk = _Walk(*first)
    is_whole, is_found = True, expected in {None, walk.digest}
    for row in _all_rows(connection):
        is_whole = walk.step(row)
        if not is_whole:
            break
        is_found = is_found or walk.digest == expected
    if is_whole:
        last_seq, last_hash = connection.execute(select(state.c.audit_seq, state.c.audit_hash)).one()
        is_whole = (last_seq, last_hash) == (walk.seq, walk.digest)
    return Verification(
        num_entries=walk.seq - first[0],
        last_hash=walk.digest,
        broken_at=None if is_whole else walk.seq + 1,
        has_expected=is_found,
        pruned_through=first[0],
    )


def _checkpoint(connection: Connection) -> tuple[int, bytes]:
    """Return the number and the hash before the first entry, as the newest note of a removal has them."""
    if connection.execute(select(func.min(audit.c.seq))).scalar() == 1:
        return 0, bytes(32)
    query = select(audit.c.details).where(audit.c.action == _PRUNE).order_by(audit.c.seq.desc()).limit(1)
    try:
        details = json.loads(connection.execute(query).scalar() or "{}")
        return int(details["through"]), bytes.fromhex(details["hash"])
    except (ValueError, TypeError, KeyError):  # nothing was removed, or somebody changed the note
        return 0, bytes(32)


def _all_rows(connection: Connection) -> Iterator[RowMapping]:
    query = select(audit).order_by(audit.c.seq).limit(_PAGE)
    rows = connection.execute(query).mappings().all()
    while rows:
        yield from rows
        rows = connection.execute(query.where(audit.c.seq > rows[-1]["seq"])).mappings().all()


def _row_of(record: AuditRecord, *, seq: int, at_ms: int) -> dict[str, object]:
    details = json.dumps(record.details, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return {
        "seq": seq,
        "at_ms": at_ms,
        "actor": _plain(record.actor, 100),
        "action": _plain(record.action, 64),
        "subject": _plain(record.subject, 200),
        "outcome": _plain(record.outcome, 32),
        "details": details,
    }


def _plain(text: str, limit: int) -> str:
    """Return text that every database takes and every terminal may show."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)[:limit]


def _hash(previous: bytes, row: Mapping[str, object] | RowMapping) -> bytes:
    """Return SHA-256 over the previous hash and the row as a JSON list, in the order of the columns."""
    written = json.dumps([row[name] for name in _HASHED], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(previous + written.encode()).digest()


_HASHED = ("seq", "at_ms", "actor", "action", "subject", "outcome", "details")


def _entry_of(row: Row[tuple[object, ...]]) -> AuditEntry:
    try:
        details = json.loads(row.details)
    except (ValueError, TypeError):  # somebody changed it; `verify` says so
        details = {"unreadable": str(row.details)}
    record = AuditRecord(actor=row.actor, action=row.action, subject=row.subject, outcome=row.outcome, details=details)
    return AuditEntry(seq=row.seq, at_ms=row.at_ms, record=record, hash=row.hash)
