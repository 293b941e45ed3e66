"""The audit log of requests: who called what and what came of it, written down by a thread of its own.

Records are gathered for a moment and written together, so that a request neither waits for the disk nor costs it a
turn. What was noted in the last moment before a crash can be lost; acts of administrators never are, because they are
written with what they change (`qwenstack.storage`). What users wrote is never noted.

Refusals of strangers are counted and written as one entry a minute: whatever they send, they can neither fill the disk
nor take the room of those who are known.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from qwenstack.serving.identity import STRANGER, Identity
from qwenstack.storage import AuditRecord

logger = logging.getLogger(__name__)

GATHER_S = 0.05
"""Records wait this long for others: half of the 100 ms within which they are to be on the disk."""
CLOSE_TIMEOUT_S = 20.0
"""A little longer than the database waits for a lock of somebody else's (`storage.database.BUSY_TIMEOUT_S`)."""
MOST_WAITING = 20_000
"""While the disk does not keep up; ten seconds of 2,000 requests a second; 11 MB of records (`tracemalloc`)."""

FOLD_S = 60.0
"""Refusals of strangers are counted for so long; after a crash, those of the last minute or two are not in the log."""

Append = Callable[[Sequence[AuditRecord]], None]


class RequestAudit:
    """Takes notes of requests without waiting."""

    def __init__(self, append: Append | None, *, count_lost: Callable[[int], None], fold_s: float = FOLD_S) -> None:
        """Write with the first function, and tell the second how many could not be; None: nothing is noted."""
        self._append = append
        self._count_lost = count_lost
        self._waiting: queue.SimpleQueue[AuditRecord | None] = queue.SimpleQueue()
        self._refusals = _Refusals()
        self._fold_s = fold_s
        self._is_failing = False
        self._num_lost = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None
        if append is not None:
            self._thread = threading.Thread(target=self._write_until_closed, name="audit", daemon=True)
            self._thread.start()

    def note(self, identity: Identity, subject: str, *, status: int | str, request_id: str, duration_s: float) -> None:
        """Note one request that was answered or refused; `status` is HTTP's number or gRPC's name."""
        if self._append is None:
            return
        if identity == STRANGER and not self._is_closed:
            self._refusals.count(status)
            return
        if self._is_closed or self._waiting.qsize() >= MOST_WAITING:
            self._lose(1)
            return
        details = {"tenant": identity.tenant, "request_id": request_id, "ms": round(duration_s * 1000, 1)}
        self._waiting.put(
            AuditRecord(actor=identity.actor, action="request", subject=subject, outcome=str(status), details=details)
        )

    def close(self) -> None:
        """Write what is waiting and stop; where the database does not answer, what is left is lost."""
        if self._thread is None or self._is_closed:
            return
        self._is_closed = True
        self._waiting.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("The database does not answer; %d requests are not in the audit log.", self._waiting.qsize())

    def _write_until_closed(self) -> None:
        is_open = True
        while is_open:
            records, is_open = self._gather()
            folded = self._refusals.take(self._fold_s if is_open else 0)
            self._write([*records, *folded])

    def _gather(self) -> tuple[list[AuditRecord], bool]:
        """Wait for a record and a moment longer; return what came, and whether more may come."""
        records: list[AuditRecord] = []
        try:
            record = self._waiting.get(timeout=self._fold_s)
        except queue.Empty:
            return records, True
        time.sleep(GATHER_S if record is not None else 0)
        while record is not None:
            records.append(record)
            try:
                record = self._waiting.get_nowait()
            except queue.Empty:
                return records, True
        return records, False

    def _write(self, records: Sequence[AuditRecord]) -> None:
        assert self._append is not None
        if not records:
            return
        try:
            self._append(records)
        except Exception as error:  # noqa: BLE001 - a thread that ended would note nothing ever again
            self._lose(sum(map(_num_requests, records)))
            if not self._is_failing:
                logger.error("Requests are answered, but not written to the audit log. %s", error)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.warning("Requests are written to the audit log again; %d were lost.", self._num_lost)
            self._is_failing = False

    def _lose(self, count: int) -> None:
        self._num_lost += count
        self._count_lost(count)


class _Refusals:
    """Counts what strangers were answered; filled by the server's loop and emptied by the audit's thread."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._by_status: Counter[str] = Counter()
        self._since_s = 0.0

    def count(self, status: int | str) -> None:
        with self._turn:
            if not self._by_status:
                self._since_s = time.monotonic()
            self._by_status[str(status)] += 1

    def take(self, min_age_s: float) -> Sequence[AuditRecord]:
        """Return the entry for what was counted, if the first of it is so old; there is at most one."""
        with self._turn:
            age_s = time.monotonic() - self._since_s
            if not self._by_status or age_s < min_age_s:
                return ()
            by_status = dict(sorted(self._by_status.items()))
            details = {"count": self._by_status.total(), "by_status": by_status, "seconds": round(age_s)}
            self._by_status.clear()
        return (AuditRecord(actor="-", action=_REFUSALS, subject="strangers", outcome="refused", details=details),)


_REFUSALS = "requests.refused"


def _num_requests(record: AuditRecord) -> int:
    count = record.details.get("count")
    return count if record.action == _REFUSALS and isinstance(count, int) else 1
