"""Makes responses, keeps them, and lets those in the background outlive their connections.

One path makes all of them: `make` yields events, whether somebody reads them as a stream, waits for the last, or comes
back later. In the database a response that is being made belongs to this server as long as its lease is held; one whose
server died is told as failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass

import msgspec

from qwenstack.core.errors import CapacityError, RequestError
from qwenstack.serving.errors import HttpError, RateLimitError, ServerStoppingError
from qwenstack.serving.failure_log import log_failure
from qwenstack.serving.identity import Identity
from qwenstack.serving.limiter import Reservation
from qwenstack.serving.service import AnswerLimit, GenerationJob, GenerationService, UsageTally
from qwenstack.serving.wire.errors import answer_error
from qwenstack.serving.wire.response_events import ResponseWriter, end_response
from qwenstack.serving.wire.response_items import InputItem, read_stored_items, to_messages, write_items
from qwenstack.serving.wire.responses import (
    ResponseError,
    ResponseErrorCode,
    ResponseEvent,
    ResponseObject,
    ResponseRequest,
)
from qwenstack.storage import ServerLease, StoredResponse, StoredResponses

MOST_IN_BACKGROUND = 64
"""Of one tenant at one time; the engine's own queue holds as many by default."""
MOST_REMEMBERED = 32
"""Finished background responses whose events can still be read; some 250 bytes for each token."""
MAX_CONVERSATION_BYTES = 8 * 1024 * 1024
"""Stored text that one request may make the server read: four bodies of the longest kind."""
_LAST_EVENTS = frozenset(f"response.{word}" for word in ("completed", "incomplete", "failed"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checked request, before anything is made."""

    job: GenerationJob
    response: ResponseObject
    items: str
    """JSON: what was asked."""
    tenant: str
    stored: bool


class Responses:
    """The responses of a server. Without a store they are made and forgotten."""

    def __init__(self, service: GenerationService, store: StoredResponses | None, lease: ServerLease | None) -> None:
        """Make responses with `service`; keep them in `store`, if there is one, while `lease` is held."""
        self._service = service
        self._store = store
        self._lease = lease
        self._runs: dict[str, BackgroundRun] = {}
        self._ended: OrderedDict[str, BackgroundRun] = OrderedDict()

    async def read(self, body: ResponseRequest, caller: Identity, *, request_id: str) -> Draft:
        """Check a request and turn it into a job.

        Raises:
            RequestError: it is wrong, or asks to keep what this server cannot keep.
            StorageError: the conversation before it cannot be read.
        """
        stored = self._wants_store(body)
        service = self._service
        options = body.request_options(tenant=caller.tenant, adapter=service.adapter_of(body.model, caller))
        limit = AnswerLimit(field="max_output_tokens")
        params = service.choose_params(body.sampling_changes(), limit=limit)
        own = body.input_items()
        earlier = await self._read_conversation(body.previous_response_id, caller)
        messages = to_messages(body.instructions, own, earlier=earlier)
        prompt = await service.read_chat(messages, caller, tools=body.to_tools(), enable_thinking=body.wants_thinking())
        response_id = f"resp_{request_id}"
        job = GenerationJob(
            request_id=response_id, prompts=[prompt], params=params, options=options, caller=caller, limit=limit
        )
        return Draft(
            job=job,
            response=_new_response(body, job, model=service.model_name(job), store=stored),
            items=msgspec.json.encode(write_items(own)).decode(),
            tenant=caller.tenant,
            stored=stored,
        )

    async def make(self, draft: Draft) -> AsyncGenerator[ResponseEvent]:
        """Yield the events of a response; when the last is yielded, it is kept. Closing the generator cancels it.

        What fails before the first token is raised, and told by an event afterwards.

        Raises:
            QwenStackError: there is no room, or the engine failed, before the answer began.
        """
        writer = ResponseWriter(draft.response)
        async with aclosing(self._events(writer, draft.job)) as events:
            async for event in events:
                if event["type"] in _LAST_EVENTS and draft.stored:
                    await self._keep(draft, writer.response)
                yield event

    async def complete(self, draft: Draft) -> ResponseObject:
        """Make a response and return it when it is finished.

        Raises:
            QwenStackError: there is no room, or the engine failed.
        """
        writer = ResponseWriter(draft.response)
        async with aclosing(self._events(writer, draft.job.unstreamed, raises=True)) as events:
            async for _ in events:
                pass
        if draft.stored:
            await self._keep(draft, writer.response)
        return writer.response

    async def begin(self, draft: Draft) -> BackgroundRun:
        """Make a response in the background; when this returns, its beginning is kept.

        Raises:
            RateLimitError: the caller has used what it may.
            CapacityError: the tenant has too many unfinished ones.
            StorageError: the database cannot be written to.
        """
        store, lease = self._need_store()
        if sum(run.tenant == draft.tenant for run in self._runs.values()) >= MOST_IN_BACKGROUND:
            raise CapacityError(
                f"{MOST_IN_BACKGROUND} background responses of yours are unfinished. Wait for one, or cancel one."
            )
        record = _record_of(draft, draft.response, owner=lease.id)
        with ExitStack() as until_it_runs:
            reservation = until_it_runs.enter_context(self._service.reserve(draft.job))
            run = BackgroundRun(record)
            self._runs[run.id] = run  # counted from here on
            until_it_runs.callback(self._runs.pop, run.id)
            await asyncio.to_thread(store.put, record)
            until_it_runs.pop_all()
        run.task = asyncio.create_task(self._run(run, draft, reservation))
        return run

    async def find(self, response_id: str, caller: Identity) -> ResponseObject:
        """Return a kept response of the caller's.

        Raises:
            HttpError: there is none of this id.
            StorageError: the database cannot be read.
        """
        return _document_of(await self._find(response_id, caller))

    async def input_items(self, response_id: str, caller: Identity) -> list[dict[str, object]]:
        """Return what a kept response of the caller's was asked, oldest first.

        Raises:
            HttpError: there is none of this id.
            StorageError: the database cannot be read.
        """
        record = await self._find(response_id, caller)
        return msgspec.json.decode(record.items, type=list[dict[str, object]])

    async def events_of(self, response_id: str, caller: Identity) -> BackgroundRun:
        """Return the background run of the caller's whose events can be read.

        Raises:
            HttpError: there is none.
            StorageError: the database cannot be read.
        """
        await self._find(response_id, caller)
        run = self._runs.get(response_id) or self._ended.get(response_id)
        if run is None:
            raise HttpError(
                400,
                "Only responses that this server makes in the background, or has just made, can be read as a stream. "
                "Read this one without `stream`.",
                code="stream_not_available",
                param="stream",
            )
        return run

    async def cancel(self, response_id: str, caller: Identity) -> ResponseObject:
        """Stop a background response of the caller's; the engine's work on it ends. One that has ended stays as it is.

        Raises:
            HttpError: there is none of this id, or it is not made in the background.
            StorageError: the database cannot be reached.
        """
        record = await self._find(response_id, caller)
        document = _document_of(record)
        if not document["background"]:
            raise HttpError(
                400,
                f"The response {response_id!r} was not made in the background; close its connection to stop one.",
                code="not_in_background",
            )
        if record.owner is None:
            return document
        run = self._runs.get(response_id)
        if run is not None:
            await run.stop()
        await self._cancel(record)
        return _document_of(await self._find(response_id, caller))

    async def delete(self, response_id: str, caller: Identity) -> None:
        """Forget a response of the caller's; one that is being made is stopped.

        Raises:
            HttpError: there is none of this id.
            StorageError: the database cannot be written to.
        """
        store, _ = self._need_store()
        run = self._runs.get(response_id)
        if run is not None and run.tenant == caller.tenant:
            await run.stop()
        if not await asyncio.to_thread(store.delete, response_id, tenant=caller.tenant):
            raise _no_response(response_id)
        self._ended.pop(response_id, None)

    async def look_after(self) -> None:
        """Tell as failed what dead servers have begun, and stop here what was ended by way of another server.

        What this server has begun and makes no more gets its end: the last write did not come through.

        Raises:
            StorageError: the database cannot be reached.
        """
        if self._store is None or self._lease is None:
            return
        for record in await asyncio.to_thread(self._store.abandoned):
            await self._fail(record, _SERVER_RESTARTED)
        running = {run.id: run for run in self._runs.values() if run.task is not None}  # their beginnings are kept
        begun = await asyncio.to_thread(self._store.begun_by, self._lease.id)
        for response_id in running.keys() - begun.keys():
            await running[response_id].stop()
        for response_id in begun.keys() - self._runs.keys():
            await self._end_late(self._store, response_id, tenant=begun[response_id])

    async def stop(self) -> None:
        """End everything in the background, because the server stops."""
        for run in list(self._runs.values()):
            with contextlib.suppress(Exception):  # what cannot be written now is told as failed by the next server
                await self._fail(run.record, _error_of(ServerStoppingError(_STOPPED), run.id))
            await run.stop()

    async def _events(
        self,
        writer: ResponseWriter,
        job: GenerationJob,
        *,
        raises: bool = False,
        reserved: Reservation | None = None,
    ) -> AsyncGenerator[ResponseEvent]:
        """Yield all events; an error after the first is one of them, unless it shall be raised."""
        tally = UsageTally(job)
        has_begun = is_cut = False
        try:
            async with aclosing(self._service.generate(job, reserved)) as pieces:
                async for piece in pieces:
                    tally.note(piece)
                    if not has_begun:
                        has_begun = True
                        for event in writer.begin():
                            yield event
                    is_cut = is_cut or piece.delta.finish_reason == "length"
                    for event in writer.write(piece.delta):
                        yield event
            last = writer.finish(tally, is_cut=is_cut)
        except Exception as error:
            if raises or not has_begun:
                raise
            last = writer.fail(_error_of(error, job.request_id))
        for event in last:
            yield event

    async def _run(self, run: BackgroundRun, draft: Draft, reservation: Reservation) -> None:
        """Make a response in the background, to whatever end; what was reserved for it is settled then."""
        store, _ = self._need_store()
        writer = ResponseWriter(draft.response)
        try:
            try:
                with reservation:
                    async with aclosing(self._events(writer, draft.job, reserved=reservation)) as events:
                        async for event in events:
                            run.publish(event)
            except Exception as error:  # noqa: BLE001 - before the answer began: nobody waits for a status
                for event in (*writer.begin(), *writer.fail(_error_of(error, run.id))):
                    run.publish(event)
            run.outcome = response = writer.response
            await asyncio.to_thread(store.finish, run.record, status=response["status"], document=_encode(response))
        except asyncio.CancelledError:
            await self._cancel(run.record)  # whoever stopped it: nobody else goes on with it
            raise
        except Exception as error:  # noqa: BLE001 - the database is away; `look_after` writes it later
            log_failure(error, run.id)
        finally:
            run.close()
            del self._runs[run.id]
            self._ended[run.id] = run
            if len(self._ended) > MOST_REMEMBERED:
                self._ended.popitem(last=False)

    async def _keep(self, draft: Draft, response: ResponseObject) -> None:
        store, _ = self._need_store()
        await asyncio.to_thread(store.put, _record_of(draft, response, owner=None))

    async def _find(self, response_id: str, caller: Identity) -> StoredResponse:
        store, _ = self._need_store()
        record = await asyncio.to_thread(store.find, response_id, tenant=caller.tenant)
        if record is None:
            raise _no_response(response_id)
        return record

    async def _fail(self, record: StoredResponse, error: ResponseError) -> None:
        store, _ = self._need_store()
        failed = end_response(_document_of(record), "failed")
        failed["error"] = error
        await asyncio.to_thread(store.finish, record, status="failed", document=_encode(failed))

    async def _end_late(self, store: StoredResponses, response_id: str, *, tenant: str) -> None:
        record = await asyncio.to_thread(store.find, response_id, tenant=tenant)
        if record is None or record.owner is None:
            return
        run = self._ended.get(response_id)
        if run is None or run.outcome is None:
            await self._fail(record, _LOST)
            return
        await asyncio.to_thread(store.finish, record, status=run.outcome["status"], document=_encode(run.outcome))

    async def _cancel(self, record: StoredResponse) -> None:
        store, _ = self._need_store()
        cancelled = end_response(_document_of(record), "cancelled")
        await asyncio.to_thread(store.finish, record, status="cancelled", document=_encode(cancelled))

    async def _read_conversation(self, previous_id: str | None, caller: Identity) -> list[InputItem]:
        if previous_id is None:
            return []
        store, _ = self._need_store()
        records = await asyncio.to_thread(
            store.conversation, previous_id, tenant=caller.tenant, max_bytes=MAX_CONVERSATION_BYTES
        )
        if not records:
            raise HttpError(
                404,
                f"There is no response {previous_id[:80]!r} to go on from.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        if records[-1].owner is not None:
            text = f"The response {previous_id[:80]!r} is not finished; go on from it when it is."
            raise RequestError(text, param="previous_response_id", code="response_not_finished")
        return await asyncio.to_thread(_items_of, records)

    def _wants_store(self, body: ResponseRequest) -> bool:
        if body.background and body.store is False:
            text = "`background` needs `store`: a response that nobody waits for must be kept. Leave `store` out."
            raise RequestError(text, param="background", code="invalid_value")
        if self._store is None and (body.store or body.background):
            raise _keeps_nothing("store" if body.store else "background")
        return body.store is not False and self._store is not None

    def _need_store(self) -> tuple[StoredResponses, ServerLease]:
        if self._store is None or self._lease is None:
            raise _keeps_nothing(None)
        return self._store, self._lease


class BackgroundRun:
    """A response that is made in the background, and its events so far."""

    def __init__(self, record: StoredResponse) -> None:
        """Start without events."""
        self.record = record
        self.task: asyncio.Task[None] | None = None
        self.outcome: ResponseObject | None = None
        """What came of it, whether or not that is kept already."""
        self._events: list[ResponseEvent] = []
        self._is_over = False
        self._news = asyncio.Event()

    @property
    def id(self) -> str:
        """The response's id."""
        return self.record.id

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.record.tenant

    def publish(self, event: ResponseEvent) -> None:
        """Add an event."""
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Add no more events."""
        self._is_over = True
        self._wake()

    async def follow(self, *, after: int = -1) -> AsyncGenerator[ResponseEvent]:
        """Yield the events with a higher number than `after`, and go on until the last."""
        position = after + 1
        while True:
            news = self._news
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self._is_over:
                return
            await news.wait()

    async def stop(self) -> None:
        """Cancel the work and wait until the engine was told."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


_STOPPED = "The server is shutting down. Send the request again when it is back."
_SERVER_RESTARTED: ResponseError = {
    "code": "server_error",
    "message": "The server ended while it made this response. Send the request again.",
    "type": "server_restarted",
}
_LOST: ResponseError = {
    "code": "server_error",
    "message": "What came of this response could not be kept. Send the request again.",
    "type": "response_lost",
}


def _new_response(body: ResponseRequest, job: GenerationJob, *, model: str, store: bool) -> ResponseObject:
    """Write a response that has just begun."""
    wanted = body.model_dump(by_alias=True, exclude_none=True)
    text = wanted.get("text", {})
    return {
        "id": job.request_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": dict(body.metadata or {}),
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": store,
        "temperature": job.params.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": wanted.get("tool_choice", "auto"),
        "tools": wanted.get("tools", []),
        "top_p": job.params.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _record_of(draft: Draft, response: ResponseObject, *, owner: str | None) -> StoredResponse:
    return StoredResponse(
        id=response["id"],
        tenant=draft.tenant,
        status=response["status"],
        created_at_ms=response["created_at"] * 1000,
        items=draft.items,
        document=_encode(response),
        previous_id=response["previous_response_id"],
        owner=owner,
    )


def _encode(response: ResponseObject) -> str:
    return msgspec.json.encode(response).decode()


def _document_of(record: StoredResponse) -> ResponseObject:
    return msgspec.json.decode(record.document)


def _items_of(records: Sequence[StoredResponse]) -> list[InputItem]:
    """Return the items of a conversation: what each response was asked, and what it answered."""
    documents: list[Mapping[str, object]] = []
    for record in records:
        documents += msgspec.json.decode(record.items, type=list[dict[str, object]])
        documents += _document_of(record)["output"]
    return read_stored_items(documents)


def _error_of(error: Exception, request_id: str) -> ResponseError:
    """Say what a response failed of; the log has the details of what was our fault."""
    answer = answer_error(error, request_id=request_id)
    if answer.is_our_fault:
        log_failure(error, request_id)
    detail = answer.detail
    code: ResponseErrorCode = "invalid_prompt" if answer.status < 500 else "server_error"
    return {
        "code": "rate_limit_exceeded" if isinstance(error, RateLimitError) else code,
        "message": detail["message"],
        "type": detail["code"] or detail["type"],
    }


def _no_response(response_id: str) -> HttpError:
    text = f"There is no response {response_id[:80]!r}; it was not stored, was deleted, or has expired."
    return HttpError(404, text, code="response_not_found")


def _keeps_nothing(param: str | None) -> HttpError:
    text = "This server keeps nothing (its `storage.url` is off): send `store` false, and the whole conversation."
    return HttpError(400, text, code="storage_off", param=param)
