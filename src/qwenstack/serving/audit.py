"""The audit log of requests: who called what and what came of it, written down by a thread of its own.

Records are gathered for a moment and written together, so that a request neither waits for the disk nor costs it a
turn. What was noted in the last moment before a crash can be lost; acts of administrators never are, because they are
written with what they change (`qwenstack.storage`). What users wrote is never noted.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from qwenstack.serving.identity import Identity
from qwenstack.storage import AuditRecord

logger = logging.getLogger(__name__)

GATHER_S = 0.05
"""Records wait this long for others: half of the 100 ms within which they are to be on the disk."""
CLOSE_TIMEOUT_S = 20.0
"""A little longer than the database waits for a lock of somebody else's (`storage.database.BUSY_TIMEOUT_S`)."""
MOST_WAITING = 20_000
"""While the disk does not keep up; ten seconds of 2,000 requests a second; 11 MB of records (`tracemalloc`)."""

Append = Callable[[Sequence[AuditRecord]], None]


class RequestAudit:
    """Takes notes of requests without waiting."""

    def __init__(self, append: Append | None, *, count_lost: Callable[[int], None]) -> None:
        """Write with the first function, and tell the second how many could not be; None: nothing is noted."""
        self._append = append
        self._count_lost = count_lost
        self._waiting: queue.SimpleQueue[AuditRecord | None] = queue.SimpleQueue()
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
            self._write(records)

    def _gather(self) -> tuple[list[AuditRecord], bool]:
        """Wait for a record and a moment longer; return what came, and whether more may come."""
        records: list[AuditRecord] = []
        record = self._waiting.get()
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
        try:
            self._append(records)
        except Exception as error:  # noqa: BLE001 - a thread that ended would note nothing ever again
            self._lose(len(records))
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
