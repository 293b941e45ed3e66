"""`POST /v1/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.core.outputs import RequestOutput, TokenLogprob
from qwenstack.serving.identity import Identity
from qwenstack.serving.rest.endpoint import (
    Backend,
    generation_responses,
    identity_of,
    json_response,
    key_router,
    request_id_of,
)
from qwenstack.serving.service import AnswerLimit, GenerationJob, GenerationService, Piece, Prompt, UsageTally
from qwenstack.serving.wire.chat import wire_finish_reason
from qwenstack.serving.wire.completions import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
)
from qwenstack.serving.wire.logprobs import CompletionLogprobs, CompletionLogprobsWriter
from qwenstack.serving.wire.sampling import Usage, usage_of
from qwenstack.serving.wire.sse import DONE, encode_event


def completion_routes(backend: Backend) -> APIRouter:
    """Make the endpoint."""
    router = key_router()

    @router.post(
        "/v1/completions",
        summary="Go on with a text",
        response_model=Completion,
        responses=generation_responses("With `stream`: events whose `data` is a `CompletionChunk`, then `[DONE]`."),
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Go on with one or more texts, whole or as a stream."""
        reading = read_completion_request(backend.service, body, identity_of(request), request_id_of(request))
        job = await backend.run(request, reading)
        echo = bool(body.echo)
        if body.stream:
            events = _stream_events(backend.service, job, echo=echo, wants_usage=body.wants_usage)
            return backend.stream(request, events)
        return json_response(await backend.run(request, complete_text(backend.service, job, echo=echo)))

    return router


async def read_completion_request(
    service: GenerationService, body: CompletionRequest, caller: Identity, request_id: str
) -> GenerationJob:
    """Check a request and turn it into a job.

    Raises:
        RequestError: it is wrong.
    """
    options = body.request_options(tenant=caller.tenant, adapter=service.adapter_of(body.model, caller))
    limit = AnswerLimit(is_ceiling=body.max_tokens is None)
    params = service.choose_params(body.sampling_changes(), max_tokens=DEFAULT_MAX_TOKENS, limit=limit)
    if body.suffix is not None:
        prompt, params = await service.read_gap(body.to_gap(), params, caller, limit=limit)
        prompts = [prompt]
    else:
        prompts = [
            await service.read_text(prompt, caller) if isinstance(prompt, str) else service.read_tokens(prompt)
            for prompt in body.prompts()
        ]
    return GenerationJob(
        request_id=f"cmpl-{request_id}", prompts=prompts, params=params, options=options, caller=caller, limit=limit
    )


async def complete_text(service: GenerationService, job: GenerationJob, *, echo: bool) -> Completion:
    """Run a job to its end, and write it; `echo`: with the prompts."""
    created = int(time.time())
    tally = UsageTally(job)
    outputs = await service.complete(job, tally)
    choices = [
        choice
        for index, (prompt, output) in enumerate(zip(job.prompts, outputs, strict=True))
        for choice in _choices(service, prompt, output, first_index=index * job.params.n, echo=echo)
    ]
    return {
        "id": job.request_id,
        "object": "text_completion",
        "created": created,
        "model": service.model_name(job),
        "choices": choices,
        "usage": usage_of(tally),
    }


def _choices(
    service: GenerationService, prompt: Prompt, output: RequestOutput, *, first_index: int, echo: bool
) -> list[CompletionChoice]:
    choices: list[CompletionChoice] = []
    for answer in output.outputs:
        text, logprobs = answer.text, None
        if answer.logprobs is not None:
            token_ids, entries = list(answer.token_ids), [*answer.logprobs]
            if echo:
                token_ids = [*prompt.token_ids, *token_ids]
                entries = [*(output.prompt_logprobs or ()), *entries]
            logprobs = CompletionLogprobsWriter(service.token_bytes).write(token_ids, entries)
        if echo:
            text = _prompt_text(service, prompt) + text
        choice: CompletionChoice = {
            "index": first_index + answer.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": wire_finish_reason(answer.finish_reason),
        }
        if answer.stop_reason is not None:
            choice["stop_reason"] = answer.stop_reason
        choices.append(choice)
    return choices


@dataclass(slots=True, kw_only=True)
class _Echo:
    """A prompt that is returned before each of its answers, whose writers share this."""

    text: str
    token_ids: Sequence[int]
    entries: Sequence[TokenLogprob | None]
    """Empty where nobody asked; each None until the first piece of answer 0, which comes before those of the others."""


class _ChunkWriter:
    """Writes one answer's chunks; it knows how far the text has come."""

    def __init__(self, service: GenerationService, *, index: int, echo: _Echo | None) -> None:
        self._index = index
        self._logprobs = CompletionLogprobsWriter(service.token_bytes)
        self._echo = echo

    def write(self, piece: Piece) -> CompletionChunkChoice | None:
        """Write what a piece adds; None where there is nothing to tell yet."""
        delta = piece.delta
        text = delta.text
        token_ids, entries = list(delta.token_ids), [*(delta.logprobs or ())]
        if self._echo is not None:
            echo, self._echo = self._echo, None
            echo.entries = delta.prompt_logprobs or echo.entries
            text = echo.text + text
            if echo.entries:
                token_ids = [*echo.token_ids, *token_ids]
                entries = [*echo.entries, *entries]
        logprobs: CompletionLogprobs | None = self._logprobs.write(token_ids, entries) if entries else None
        if not text and logprobs is None and delta.finish_reason is None:
            return None
        reason = None if delta.finish_reason is None else wire_finish_reason(delta.finish_reason)
        choice: CompletionChunkChoice = {
            "index": self._index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        if delta.stop_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice


async def _stream_events(
    service: GenerationService, job: GenerationJob, *, echo: bool, wants_usage: bool
) -> AsyncGenerator[bytes]:
    created = int(time.time())
    tally = UsageTally(job)
    n = job.params.n
    writers = _chunk_writers(service, job, echo=echo)

    def event(choices: list[CompletionChunkChoice], usage: Usage | None = None) -> bytes:
        chunk: CompletionChunk = {
            "id": job.request_id,
            "object": "text_completion",
            "created": created,
            "model": service.model_name(job),
            "choices": choices,
        }
        if wants_usage:
            chunk["usage"] = usage
        return encode_event(chunk)

    async with aclosing(service.generate(job)) as pieces:
        async for piece in pieces:
            tally.note(piece)
            choice = writers[piece.prompt_index * n + piece.delta.index].write(piece)
            if choice is not None:
                yield event([choice])
    if wants_usage:
        yield event([], usage_of(tally))
    yield DONE


def _chunk_writers(service: GenerationService, job: GenerationJob, *, echo: bool) -> list[_ChunkWriter]:
    """Make the writer of each answer, in the order of their indices."""
    writers: list[_ChunkWriter] = []
    for prompt in job.prompts:
        entries = [None] * len(prompt.token_ids) if job.params.prompt_logprobs is not None else ()
        shared = None
        if echo:
            shared = _Echo(text=_prompt_text(service, prompt), token_ids=prompt.token_ids, entries=entries)
        for _ in range(job.params.n):
            writers.append(_ChunkWriter(service, index=len(writers), echo=shared))
    return writers


def _prompt_text(service: GenerationService, prompt: Prompt) -> str:
    if prompt.text is not None:
        return prompt.text
    return service.text_of(prompt.token_ids)
