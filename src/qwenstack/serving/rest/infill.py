"""`POST /infill` (llama.cpp's) and `POST /v1/fim/completions` (Mistral's): filling gaps for editors."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.core.infill import Gap
from qwenstack.core.outputs import CompletionOutput
from qwenstack.core.request_options import RequestOptions
from qwenstack.serving.rest.chat import complete_chat, stream_chat
from qwenstack.serving.rest.endpoint import (
    Backend,
    generation_responses,
    identity_of,
    json_response,
    key_router,
    request_id_of,
)
from qwenstack.serving.service import DEFAULT_MODEL_NAME, AnswerLimit, GenerationJob, GenerationService, UsageTally
from qwenstack.serving.wire.chat import ChatCompletion
from qwenstack.serving.wire.infill import (
    FimRequest,
    IndentGuard,
    InfillAnswer,
    InfillRequest,
    select_fields,
    write_stop_type,
    write_timings,
)
from qwenstack.serving.wire.sse import encode_event


def infill_routes(backend: Backend) -> APIRouter:
    """Make the endpoints."""
    router = key_router()
    service = backend.service

    @router.post(
        "/infill",
        summary="Fill a gap in a file (llama.cpp)",
        response_model=InfillAnswer,
        responses=generation_responses("With `stream`: events whose `data` is an `InfillAnswer`."),
    )
    async def infill(body: InfillRequest, request: Request) -> Response:
        """Write what belongs between what stands before the cursor and what stands after it."""
        caller = identity_of(request)
        options = RequestOptions(
            tenant=caller.tenant,
            adapter=service.adapter_of(body.model or DEFAULT_MODEL_NAME, caller),
            prefix_cache=body.cache_prompt is not False,
        )
        limit = AnswerLimit(field="n_predict")
        params = service.choose_params(body.sampling_changes(), limit=limit)
        reading = service.read_gap(body.to_gap(), params, caller, may_cut=True)
        prompt, params = await backend.run(request, reading)
        job = GenerationJob(
            request_id=f"infill-{request_id_of(request)}",
            prompts=[prompt],
            params=params,
            options=options,
            caller=caller,
            limit=limit,
        )
        filling = _Filling(service, job, body)
        if body.stream:
            return backend.stream(request, filling.events())
        return json_response(await backend.run(request, filling.complete()))

    @router.post(
        "/v1/fim/completions",
        summary="Fill a gap in a text (Mistral)",
        response_model=ChatCompletion,
        responses=generation_responses("With `stream`: events whose `data` is a `ChatCompletionChunk`, then `[DONE]`."),
    )
    async def complete_fim(body: FimRequest, request: Request) -> Response:
        """Write what belongs between a text and its suffix."""
        caller = identity_of(request)
        options = RequestOptions(tenant=caller.tenant, adapter=service.adapter_of(body.model, caller))
        params = service.choose_params(body.sampling_changes())
        reading = service.read_gap(Gap(prefix=body.prompt, suffix=body.suffix or ""), params, caller)
        prompt, params = await backend.run(request, reading)
        job = GenerationJob(
            request_id=f"fim-{request_id_of(request)}",
            prompts=[prompt],
            params=params,
            options=options,
            caller=caller,
        )
        if body.stream:
            return backend.stream(request, stream_chat(service, job, usage="in_last_choice"))
        return json_response(await backend.run(request, complete_chat(service, job)))

    return router


@dataclass(slots=True)
class _Filling:
    """One gap that is being filled."""

    service: GenerationService
    job: GenerationJob
    body: InfillRequest
    tally: UsageTally = field(init=False)
    whole: CompletionOutput = field(default_factory=lambda: CompletionOutput(index=0))
    started_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    guard: IndentGuard = field(init=False)

    def __post_init__(self) -> None:
        """Count from the start."""
        self.tally = UsageTally(self.job)
        self.guard = IndentGuard(self.body.n_indent or 0)

    async def complete(self) -> object:
        """Return the whole answer."""
        pieces = [piece async for piece in self._pieces()]
        return self._selected(self._last("".join(pieces)))

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the answer piece by piece."""
        async with aclosing(self._pieces()) as pieces:
            async for text in pieces:
                part: InfillAnswer = {"index": 0, "content": text, "stop": False}
                yield encode_event(part)
        yield encode_event(self._selected(self._last("")))

    async def _pieces(self) -> AsyncGenerator[str]:
        """Yield what is certain of the answer as it comes, until it, its block or its time ends."""
        has_line = False
        async with aclosing(self.service.generate(self.job)) as pieces:
            async for piece in pieces:
                self.first_at = self.first_at or time.monotonic()
                self.tally.note(piece)
                self.whole.add(piece.delta)
                has_line = has_line or "\n" in piece.delta.text
                text, is_over = self.guard.push(piece.delta.text)
                if piece.delta.finish_reason is not None and not is_over:
                    text += self.guard.finish()
                if text and self.body.n_predict != 0:
                    yield text
                if is_over or (has_line and self._is_late()):
                    break

    def _is_late(self) -> bool:
        """Whether the time for the answer is over."""
        limit_ms, now = self.body.t_max_predict_ms or 0, time.monotonic()
        return limit_ms > 0 and (now - (self.first_at or now)) * 1e3 > limit_ms

    def _last(self, content: str) -> InfillAnswer:
        stop_type, word = write_stop_type(self.whole.finish_reason, self.whole.stop_reason, self.job.params.stop)
        now = time.monotonic()
        first_at = self.first_at or now
        only_reads = self.body.n_predict == 0
        num_predicted = 0 if only_reads else self.tally.completion_tokens
        num_read = self.tally.prompt_tokens - self.tally.cached_tokens
        return {
            "index": 0,
            "content": "" if only_reads else content,
            "stop": True,
            "model": self.service.model_name(self.job),
            "tokens_predicted": num_predicted,
            "tokens_evaluated": self.tally.prompt_tokens,
            "tokens_cached": self.tally.cached_tokens,
            "has_new_line": "\n" in self.whole.text,
            "truncated": self.job.prompts[0].is_cut,
            "stop_type": "limit" if only_reads else stop_type,
            "stopping_word": word,
            "timings": write_timings(num_read, first_at - self.started_at, num_predicted, now - first_at),
        }

    def _selected(self, answer: InfillAnswer) -> object:
        fields = self.body.response_fields
        return answer if fields is None else select_fields(answer, fields)
