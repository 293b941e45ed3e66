"""Runs batches in the server's process, at the lowest priority, a few lines at a time.

A line is answered by the same code as a request over HTTP, as the caller who made the batch. What is answered is in the
database before the next line begins, so that a server that dies has to answer again only what it was at. A batch gives
its place to another when all its lines have to wait, and when it has had its turn and another is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from qwenstack.core.errors import RequestError, StorageError
from qwenstack.logs import RequestContext, request_context
from qwenstack.serving.batch_input import InputLines, LinePlace, check_lines, find_lines, read_line_body
from qwenstack.serving.batches import Batches, BatchStore, SavedCaller
from qwenstack.serving.errors import HttpError, RateLimitError
from qwenstack.serving.failure_log import log_failure
from qwenstack.serving.identity import Access, Identity
from qwenstack.serving.line_waits import LineWaits
from qwenstack.serving.wire.batches import (
    LineAnswer,
    LineError,
    count_tokens,
    error_body,
    write_answer,
    write_unanswered,
)
from qwenstack.serving.wire.errors import ErrorAnswer, answer_error
from qwenstack.serving.wire.files import BATCH_LIFETIME_S
from qwenstack.storage import (
    LONGEST_PUT_OFF_S,
    NO_TOKENS,
    BatchStatus,
    BatchTokens,
    Draft,
    ServerLease,
    StoredBatch,
    StoredFile,
)

logger = logging.getLogger(__name__)

MOST_BATCHES = 4
"""At one time, of different tenants."""
LINES_AT_ONCE = 4
"""Of one batch: enough for a step of the engine to be worth it, few beside its 64 seats."""
MOST_FAILURES = 3
"""After so many failures of our own a line's answer is the failure."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
"""Between two tries where there is no room, and nobody knows when there will be."""
TURN_S = 300.0
"""A batch has its place for so long where others wait for it."""
WATCH_EVERY_S = 0.5
"""A batch that was cancelled is noticed so soon, however long its lines take."""

Answer = Callable[[object, Identity, str], Awaitable[LineAnswer]]
"""Answers a line's body as a caller, under a request id, or raises what a request would be refused with."""
FindCaller = Callable[[SavedCaller, str], Identity | None]
"""Returns who made a batch of a tenant's, with what they may do now; None: what they showed opens nothing any more."""


class Written(NamedTuple):
    """What became of a line, as it is kept."""

    line: str
    is_error: bool
    tokens: BatchTokens


class NoRoomError(RequestError):
    """The answers of a batch are more than its tenant may keep."""

    def __init__(self) -> None:
        """Say what to do."""
        text = (
            "The answers do not fit: your files would have more bytes together than you may keep. "
            "Delete some, or make smaller batches."
        )
        super().__init__(text, code="quota_exceeded")


class Turn:
    """The lines that a batch answers while it has its place; whoever is at one ends it."""

    def __init__(self, places: Sequence[LinePlace], *, first_wait_s: float) -> None:
        """Begin with those that have no answer."""
        self._places = iter(places)
        self.is_over = False
        self.first_wait_s = first_wait_s
        """Of a line for which there is no room."""

    def __iter__(self) -> Iterator[LinePlace]:
        """Yield the next, to each of those who work on them."""
        while not self.is_over and (place := next(self._places, None)) is not None:
            yield place


class Room:
    """How much a tenant may still keep."""

    def __init__(self, num_bytes: int) -> None:
        """Begin with so many bytes."""
        self._num_bytes = num_bytes

    def take(self, line: str) -> None:
        """Take what a line of a file needs.

        Raises:
            NoRoomError: there is not so much left.
        """
        self._num_bytes -= 1 + (len(line) if line.isascii() else len(line.encode()))
        if self._num_bytes < 0:
            raise NoRoomError


class BatchRunner:
    """Takes one batch after the other and runs it."""

    def __init__(
        self,
        batches: Batches,
        store: BatchStore,
        lease: ServerLease,
        *,
        answers: Mapping[str, Answer],
        find_caller: FindCaller,
        max_line_bytes: int,
    ) -> None:
        """Run what is in `store` as the server that holds `lease`; `answers` are by endpoint."""
        self._batches = batches
        self._store = store
        self._lease = lease
        self._answers = answers
        self._find_caller = find_caller
        self._max_line_bytes = max_line_bytes
        self._running: dict[asyncio.Task[None], StoredBatch] = {}
        self._last_waits_s: dict[str, float] = {}
        """Of batches that had to wait when they gave their places back: the next wait is as long at least."""

    async def run(self) -> None:
        """Run batches until this is cancelled; those that are not finished are left to others then."""
        try:
            while True:
                self._batches.news.clear()
                with contextlib.suppress(TimeoutError):
                    await self._take_what_there_is()
                    async with asyncio.timeout(self._lease.lease_s / 3):
                        await self._batches.news.wait()
        finally:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)
            with contextlib.suppress(Exception):  # then others have them when the lease ends
                await asyncio.to_thread(self._store.batches.release, self._lease.id)

    async def _take_what_there_is(self) -> None:
        while len(self._running) < MOST_BATCHES:
            running = list(self._running.values())
            try:
                batch = await asyncio.to_thread(
                    self._store.batches.claim,
                    self._lease.id,
                    running=[batch.id for batch in running],
                    busy_tenants=[batch.tenant for batch in running],
                )
            except Exception as error:  # noqa: BLE001 - the database is away; it is asked again
                logger.error("Batches are not looked for. %s", error)
                return
            if batch is None:
                return
            task = asyncio.create_task(self._run_safely(batch))
            self._running[task] = batch
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._batches.news.set()

    async def _run_safely(self, batch: StoredBatch) -> None:
        try:
            await self._run_batch(batch)
        except Exception as error:  # noqa: BLE001 - the others go on, and this one is taken up again
            log_failure(error, batch.id)
            await asyncio.sleep(self._lease.lease_s / 3)

    async def _run_batch(self, batch: StoredBatch) -> None:
        """Bring a batch from wherever it is to its end, or until it is somebody else's."""
        try:
            content = await asyncio.to_thread(self._open_input, batch)
        except FileNotFoundError:
            gone: LineError = {"code": "file_not_found", "line": None, "message": "The file is gone.", "param": None}
            await self._end(batch, "failed", errors=msgspec.json.encode([gone]).decode())
            return
        with content:
            lines = await asyncio.to_thread(self._read_input, batch, content)
            if lines.errors:
                await self._end(batch, "failed", errors=msgspec.json.encode(lines.errors).decode())
                return
            total = {"num_total": len(lines.places)}
            await asyncio.to_thread(
                self._store.batches.advance, batch.id, self._lease.id, since="validating", to="in_progress", **total
            )
            try:
                wait_s = await self._answer_lines(batch, content, lines)
            except NoRoomError as error:
                await self._end(batch, "failed", lines=lines, errors=_write_errors(error))
                return
        await self._conclude(batch, lines, wait_s)

    def _open_input(self, batch: StoredBatch) -> BinaryIO:
        file = self._store.files.find_input(batch.input_file_id, tenant=batch.tenant)
        if file is None:
            raise FileNotFoundError(batch.input_file_id)
        return self._store.files.open(file)

    def _read_input(self, batch: StoredBatch, content: BinaryIO) -> InputLines:
        """Find the lines, which are checked once: a batch that comes back costs little."""
        if batch.num_total:
            return InputLines(places=find_lines(content), errors=[])
        return check_lines(content, endpoint=batch.endpoint, max_line_bytes=self._max_line_bytes)

    async def _answer_lines(self, batch: StoredBatch, content: BinaryIO, lines: InputLines) -> float | None:
        """Answer what is not answered, until all is, the batch is not in progress any more, or it is another's turn.

        Returns:
            In how many seconds to go on, where all that is left has to wait.
        """
        answered = await asyncio.to_thread(self._store.batches.answered, batch.id)
        turn = Turn(
            [place for place in lines.places if place.number not in answered],
            first_wait_s=self._last_waits_s.pop(batch.id, FIRST_WAIT_S),
        )
        room = await asyncio.to_thread(self._room_for, batch)
        waits = LineWaits(LINES_AT_ONCE)
        workers = [asyncio.create_task(self._work(batch, content, turn, room, waits)) for _ in range(LINES_AT_ONCE)]
        watch = asyncio.create_task(self._watch(batch, turn))
        working = asyncio.gather(*workers)
        try:
            await asyncio.wait([working, watch, waits.leaving], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            return waits.leaving.result() if waits.leaving.done() else None
        finally:
            working.cancel()
            watch.cancel()
            await asyncio.wait([*workers, watch])
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await working

    async def _watch(self, batch: StoredBatch, turn: Turn) -> None:
        """Return when the batch is to be stopped; end its turn when another's has come."""
        turn_ends_s = time.monotonic() + TURN_S
        while time.time() * 1000 < batch.expires_at_ms:
            if not await asyncio.to_thread(self._store.batches.is_going_on, batch.id, self._lease.id):
                return
            if not turn.is_over and time.monotonic() >= turn_ends_s:
                turn.is_over = await asyncio.to_thread(self._is_another_due, batch)
            await asyncio.sleep(WATCH_EVERY_S)

    def _is_another_due(self, batch: StoredBatch) -> bool:
        """Whether there is a batch that could have this one's place."""
        running = list(self._running.values())
        return self._store.batches.is_any_due(
            self._lease.id,
            running=[each.id for each in running],
            busy_tenants=[each.tenant for each in running if each.id != batch.id],
        )

    def _room_for(self, batch: StoredBatch) -> Room:
        left = self._store.files.room(batch.tenant) - self._store.batches.answered_chars(batch.id)
        return Room(left)

    async def _work(self, batch: StoredBatch, content: BinaryIO, turn: Turn, room: Room, waits: LineWaits) -> None:
        for place in turn:
            written = await self._answer_line(batch, content, place, turn, waits)
            turn.first_wait_s = FIRST_WAIT_S
            room.take(written.line)
            is_kept = await asyncio.to_thread(
                self._store.batches.answer, batch.id, self._lease.id, number=place.number, **written._asdict()
            )
            if not is_kept:
                break
        waits.end_work()

    async def _answer_line(
        self, batch: StoredBatch, content: BinaryIO, place: LinePlace, turn: Turn, waits: LineWaits
    ) -> Written:
        """Answer a line; what may go better in a moment is tried again."""
        num_failures, wait_s = 0, turn.first_wait_s
        while True:
            request_id = secrets.token_hex(16)
            try:
                caller = self._caller_of(batch)
                with request_context(RequestContext(request_id=request_id, tenant=caller.tenant, key_id=caller.key_id)):
                    body = await asyncio.to_thread(read_line_body, content, place)
                    answer = await self._answers[batch.endpoint](body, caller, request_id)
            except Exception as error:  # noqa: BLE001 - nothing that a line causes may end the batch
                refusal = answer_error(error, request_id=request_id)
                if refusal.is_our_fault:
                    log_failure(error, request_id)
                is_failure = refusal.status >= 500 and not _is_busy(refusal)
                num_failures += is_failure
                if not (_is_busy(refusal) or (is_failure and num_failures < MOST_FAILURES)):
                    line = write_answer(
                        place.custom_id,
                        request_id=request_id,
                        status=refusal.status,
                        body=error_body(refusal.detail),
                    )
                    return Written(line, is_error=True, tokens=NO_TOKENS)
                limit_wait_s = error.retry_after_s if isinstance(error, RateLimitError) else 0.0
                await waits.wait(min(max(wait_s, limit_wait_s), LONGEST_PUT_OFF_S))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                line = await asyncio.to_thread(  # vectors make long ones
                    write_answer, place.custom_id, request_id=request_id, status=200, body=answer
                )
                return Written(line, is_error=False, tokens=count_tokens(answer))

    def _caller_of(self, batch: StoredBatch) -> Identity:
        """Return who made the batch, with what they may do now.

        Raises:
            HttpError: what they showed opens nothing any more.
        """
        caller = self._find_caller(msgspec.json.decode(batch.caller, type=SavedCaller), batch.tenant)
        if caller is None or not caller.may(Access.INFERENCE):
            text = "The key or the token that made this batch opens nothing any more: it was revoked or has expired."
            raise HttpError(401, text, code="invalid_api_key")
        return caller

    async def _conclude(self, batch: StoredBatch, lines: InputLines, wait_s: float | None) -> None:
        """Write the files of a batch that has no more to be answered, and end it; put off one that has to wait."""
        store, own = self._store.batches, self._lease.id
        now = await asyncio.to_thread(store.find, batch.id, tenant=batch.tenant)
        if now is None or now.owner != own:
            return  # another server's by now
        if now.status == "in_progress":
            is_whole = now.num_completed + now.num_failed == now.num_total
            now_ms = int(time.time() * 1000)
            if not is_whole and now_ms < batch.expires_at_ms:  # it is taken up again
                if wait_s is not None:
                    self._last_waits_s[batch.id] = min(wait_s, LONGEST_WAIT_S)
                until_ms = min(now_ms + int((wait_s or 0) * 1000), batch.expires_at_ms)
                await asyncio.to_thread(store.put_off, batch.id, own, until_ms=until_ms)
            elif is_whole:
                await asyncio.to_thread(store.advance, batch.id, own, since="in_progress", to="finalizing")
                await self._end(batch, "completed", lines=lines)
            else:
                await self._end(batch, "expired", lines=lines)
        elif now.status == "finalizing":
            await self._end(batch, "completed", lines=lines)
        elif now.status == "cancelling":
            await self._end(batch, "cancelled", lines=lines)

    async def _end(
        self, batch: StoredBatch, to: BatchStatus, *, lines: InputLines | None = None, errors: str | None = None
    ) -> None:
        try:
            await asyncio.to_thread(self._write_end, batch, to, lines, errors)
        except NoRoomError as error:  # the tenant has filled it in the meantime
            await asyncio.to_thread(self._finish, batch, "failed", _write_errors(error))

    def _write_end(self, batch: StoredBatch, to: BatchStatus, lines: InputLines | None, errors: str | None) -> None:
        """Write what was answered into files, and end the batch with them, all or nothing."""
        store, own = self._store.batches, self._lease.id
        now = store.find(batch.id, tenant=batch.tenant)
        if now is None:
            return
        drafts: list[Draft] = []
        is_ended = False
        try:
            room = Room(self._store.files.room(batch.tenant))
            output = self._write_file(batch, store.answers(batch.id, is_error=False), "output", drafts, room)
            failures = self._write_file(batch, self._failures_of(batch, to, lines), "error", drafts, room)
            is_ended = store.finish(
                batch.id, own, since=now.status, to=to, output=output, failures=failures, errors=errors
            )
        except StorageError:
            is_ended = True  # perhaps: whether the last write came through is not known, and the sweep finds out
            raise
        finally:
            for draft in drafts if not is_ended else ():
                draft.discard()

    def _finish(self, batch: StoredBatch, to: BatchStatus, errors: str) -> None:
        """End a batch without files."""
        now = self._store.batches.find(batch.id, tenant=batch.tenant)
        if now is not None:
            self._store.batches.finish(
                batch.id, self._lease.id, since=now.status, to=to, output=None, failures=None, errors=errors
            )

    def _failures_of(self, batch: StoredBatch, to: BatchStatus, lines: InputLines | None) -> Iterator[str]:
        yield from self._store.batches.answers(batch.id, is_error=True)
        if to != "expired" or lines is None:
            return
        answered = self._store.batches.answered(batch.id)
        for place in lines.places:
            if place.number not in answered:
                yield write_unanswered(
                    place.custom_id,
                    request_id=secrets.token_hex(16),
                    code="batch_expired",
                    message="This request was not answered before the batch expired.",
                )

    def _write_file(
        self, batch: StoredBatch, lines: Iterator[str], kind: str, drafts: list[Draft], room: Room
    ) -> StoredFile | None:
        """Write lines into a file; None where there are none."""
        draft: Draft | None = None
        for line in lines:
            if draft is None:
                draft = self._store.files.begin()
                drafts.append(draft)
            room.take(line)
            draft.write(line.encode() + b"\n")
        if draft is None:
            return None
        draft.seal()
        return self._store.files.describe(
            draft,
            tenant=batch.tenant,
            purpose="batch_output",
            filename=f"{batch.id}_{kind}.jsonl",
            lifetime_s=BATCH_LIFETIME_S,
        )


def _write_errors(error: RequestError) -> str:
    """Say what a batch as a whole failed of."""
    told: LineError = {"code": error.code or "", "line": None, "message": str(error), "param": None}
    return msgspec.json.encode([told]).decode()


def _is_busy(refusal: ErrorAnswer) -> bool:
    """Whether the same may be answered in a moment."""
    return refusal.status in {429, 503}
