"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.core.outputs import CompletionOutput, TokenLogprob
from qwenstack.serving.identity import Identity
from qwenstack.serving.rest.endpoint import (
    Backend,
    generation_responses,
    identity_of,
    json_response,
    key_router,
    request_id_of,
)
from qwenstack.serving.service import AnswerLimit, GenerationJob, GenerationService, Piece, UsageTally
from qwenstack.serving.wire.chat import (
    AnswerDelta,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    chat_finish_reason,
    write_deltas,
    write_message,
)
from qwenstack.serving.wire.logprobs import ChatLogprobs, write_chat_logprobs
from qwenstack.serving.wire.sampling import Usage, usage_of
from qwenstack.serving.wire.sse import DONE, encode_event


def chat_routes(backend: Backend) -> APIRouter:
    """Make the endpoint."""
    router = key_router()

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_model=ChatCompletion,
        responses=generation_responses("With `stream`: events whose `data` is a `ChatCompletionChunk`, then `[DONE]`."),
    )
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """Go on with a conversation, whole or as a stream."""
        reading = read_chat_request(backend.service, body, identity_of(request), request_id_of(request))
        job = await backend.run(request, reading)
        if body.stream:
            usage = "at_end" if body.wants_usage else None
            return backend.stream(request, stream_chat(backend.service, job, usage=usage))
        return json_response(await backend.run(request, complete_chat(backend.service, job)))

    return router


async def read_chat_request(
    service: GenerationService, body: ChatCompletionRequest, caller: Identity, request_id: str
) -> GenerationJob:
    """Check a request and turn it into a job.

    Raises:
        RequestError: it is wrong.
    """
    options = body.request_options(tenant=caller.tenant, adapter=service.adapter_of(body.model, caller))
    limit = AnswerLimit(field=body.max_tokens_field)
    params = service.choose_params(body.sampling_changes(), limit=limit)
    prompt = await service.read_chat(
        body.to_messages(), caller, tools=body.to_tools(), enable_thinking=body.wants_thinking()
    )
    return GenerationJob(
        request_id=f"chatcmpl-{request_id}",
        prompts=[prompt],
        params=params,
        options=options,
        caller=caller,
        limit=limit,
    )


async def complete_chat(service: GenerationService, job: GenerationJob) -> ChatCompletion:
    """Run a job of one prompt to its end, and write it."""
    created = int(time.time())
    tally = UsageTally(job)
    (output,) = await service.complete(job, tally)
    return {
        "id": job.request_id,
        "object": "chat.completion",
        "created": created,
        "model": service.model_name(job),
        "choices": [_whole_choice(service, answer) for answer in output.outputs],
        "usage": usage_of(tally),
    }


async def stream_chat(
    service: GenerationService, job: GenerationJob, *, usage: Literal["at_end", "in_last_choice"] | None
) -> AsyncGenerator[bytes]:
    """Write the answers piece by piece: each opens with the role and closes with its reason to end.

    `usage`: whether the tokens are told in an event of their own, as OpenAI does, or beside the one answer's reason to
    end, as Mistral does, whose clients expect a choice with a text in every event.
    """
    created = int(time.time())
    tally = UsageTally(job)
    opened: set[int] = set()
    calling: set[int] = set()

    def event(choices: list[ChatChunkChoice], used: Usage | None = None) -> bytes:
        chunk: ChatCompletionChunk = {
            "id": job.request_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": service.model_name(job),
            "choices": choices,
        }
        if used is not None or usage == "at_end":
            chunk["usage"] = used
        return encode_event(chunk)

    async with aclosing(service.generate(job)) as pieces:
        async for piece in pieces:
            tally.note(piece)
            if piece.delta.index not in opened:
                opened.add(piece.delta.index)
                yield event([_choice(piece, {"role": "assistant", "content": ""})])
            logprobs = _write_logprobs(service, piece.delta.logprobs)
            deltas = write_deltas(piece.delta)
            if piece.delta.tool_calls:
                calling.add(piece.delta.index)
            if not deltas and logprobs and logprobs["content"]:
                deltas.append({"content": ""})
            for number, delta in enumerate(deltas):
                yield event([_choice(piece, delta, logprobs if number == 0 else None)])
            if piece.delta.finish_reason is not None:
                choice = _choice(piece, {} if usage != "in_last_choice" else {"content": ""})
                choice["finish_reason"] = chat_finish_reason(
                    piece.delta.finish_reason, has_calls=piece.delta.index in calling
                )
                if piece.delta.stop_reason is not None:
                    choice["stop_reason"] = piece.delta.stop_reason
                yield event([choice], usage_of(tally) if usage == "in_last_choice" else None)
    if usage == "at_end":
        yield event([], usage_of(tally))
    yield DONE


def _whole_choice(service: GenerationService, answer: CompletionOutput) -> ChatChoice:
    choice: ChatChoice = {
        "index": answer.index,
        "message": write_message(answer),
        "logprobs": _write_logprobs(service, answer.logprobs),
        "finish_reason": chat_finish_reason(answer.finish_reason, has_calls=bool(answer.tool_calls)),
    }
    if answer.stop_reason is not None:
        choice["stop_reason"] = answer.stop_reason
    return choice


def _choice(piece: Piece, delta: AnswerDelta, logprobs: ChatLogprobs | None = None) -> ChatChunkChoice:
    return {"index": piece.delta.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _write_logprobs(service: GenerationService, logprobs: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
    return None if logprobs is None else write_chat_logprobs(logprobs, service.token_bytes)
