"""`POST /v1/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.core.outputs import RequestOutput
from qwenstack.serving.identity import Identity
from qwenstack.serving.rest.endpoint import (
    Backend,
    generation_responses,
    identity_of,
    json_response,
    key_router,
    request_id_of,
)
from qwenstack.serving.service import GenerationJob, GenerationService, Piece, Prompt, UsageTally
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
    params = service.choose_params(body.sampling_changes(), max_tokens=DEFAULT_MAX_TOKENS)
    if body.suffix is not None:
        prompt, params = await service.read_gap(body.to_gap(), params, caller)
        prompts = [prompt]
    else:
        prompts = [
            await service.read_text(prompt, caller) if isinstance(prompt, str) else service.read_tokens(prompt)
            for prompt in body.prompts()
        ]
    return GenerationJob(
        request_id=f"cmpl-{request_id}", prompts=prompts, params=params, options=options, caller=caller
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


class _ChunkWriter:
    """Writes one answer's chunks; it knows how far the text has come."""

    def __init__(self, service: GenerationService, prompt: Prompt, *, index: int, echo: bool) -> None:
        self._prompt = prompt
        self._index = index
        self._logprobs = CompletionLogprobsWriter(service.token_bytes)
        self._echo_text = _prompt_text(service, prompt) if echo else None

    def write(self, piece: Piece) -> CompletionChunkChoice | None:
        """Write what a piece adds; None where there is nothing to tell yet."""
        delta = piece.delta
        text = delta.text
        token_ids, entries = list(delta.token_ids), [*(delta.logprobs or ())]
        if self._echo_text is not None:
            text, self._echo_text = self._echo_text + text, None
            if delta.prompt_logprobs is not None:
                token_ids = [*self._prompt.token_ids, *token_ids]
                entries = [*delta.prompt_logprobs, *entries]
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
    writers = [
        _ChunkWriter(service, prompt, index=prompt_index * n + index, echo=echo)
        for prompt_index, prompt in enumerate(job.prompts)
        for index in range(n)
    ]

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


def _prompt_text(service: GenerationService, prompt: Prompt) -> str:
    if prompt.text is not None:
        return prompt.text
    return service.text_of(prompt.token_ids)
