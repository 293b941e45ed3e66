"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import ClassVar

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.core.request_options import RequestOptions
from qwenstack.serving.access import KeyRoute
from qwenstack.serving.rest.endpoint import (
    Backend,
    StreamForm,
    error_responses,
    generation_responses,
    identity_of,
    json_response,
    key_router,
    request_id_of,
)
from qwenstack.serving.service import GenerationJob, GenerationService, UsageTally
from qwenstack.serving.wire.anthropic import (
    AnthropicErrorBody,
    BlockWriter,
    CountTokensRequest,
    CountTokensResponse,
    MessageAnswer,
    MessageRequest,
    write_anthropic_error,
    write_content,
    write_stop,
    write_usage,
)
from qwenstack.serving.wire.errors import ErrorAnswer, WriteError


class AnthropicRoute(KeyRoute):
    """A route whose clients are Anthropic's."""

    write_error: ClassVar[WriteError] = staticmethod(write_anthropic_error)


def anthropic_routes(backend: Backend) -> APIRouter:
    """Make the endpoints."""
    router = key_router(AnthropicRoute, AnthropicErrorBody)

    @router.post(
        "/v1/messages",
        summary="Answer a conversation (Anthropic)",
        response_model=MessageAnswer,
        responses=generation_responses("With `stream`: Anthropic's events, named by `event`.", body=AnthropicErrorBody),
    )
    async def create_message(body: MessageRequest, request: Request) -> Response:
        """Go on with a conversation, whole or as a stream of events."""
        job = await backend.run(request, _read_request(backend.service, body, request))
        if body.stream:
            return backend.stream(request, _stream_events(backend.service, job), ANTHROPIC_STREAM)
        return json_response(await backend.run(request, _complete(backend.service, job)))

    @router.post(
        "/v1/messages/count_tokens",
        summary="Count the tokens of a conversation (Anthropic)",
        response_model=CountTokensResponse,
        responses=error_responses(400, 404, 413, 415, 500, body=AnthropicErrorBody),
    )
    async def count_tokens(body: CountTokensRequest, request: Request) -> Response:
        """Count what a conversation takes of the context, the template's own words included."""
        caller = identity_of(request)
        backend.service.adapter_of(body.model, caller)
        reading = backend.service.tokenize_chat(
            body.to_messages(), caller, tools=body.to_tools(), enable_thinking=body.wants_thinking
        )
        token_ids = await backend.run(request, reading)
        counted: CountTokensResponse = {"input_tokens": len(token_ids)}
        return json_response(counted)

    return router


def _encode(event: dict[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), msgspec.json.encode(event))


def _encode_error(answer: ErrorAnswer) -> bytes:
    return _encode({**write_anthropic_error(answer)})


ANTHROPIC_STREAM = StreamForm(media_type="text/event-stream", ping=_encode({"type": "ping"}), write_error=_encode_error)


async def _read_request(service: GenerationService, body: MessageRequest, request: Request) -> GenerationJob:
    caller = identity_of(request)
    options = RequestOptions(tenant=caller.tenant, adapter=service.adapter_of(body.model, caller))
    params = service.choose_params(body.sampling_changes())
    prompt = await service.read_chat(
        body.to_messages(), caller, tools=body.to_tools(), enable_thinking=body.wants_thinking
    )
    request_id = f"msg_{request_id_of(request)}"
    return GenerationJob(request_id=request_id, prompts=[prompt], params=params, options=options, caller=caller)


async def _complete(service: GenerationService, job: GenerationJob) -> MessageAnswer:
    tally = UsageTally(job)
    (output,) = await service.complete(job, tally)
    (answer,) = output.outputs
    message = _empty_answer(service, job, tally)
    message["content"] = write_content(answer)
    message["stop_reason"], message["stop_sequence"] = write_stop(
        answer.finish_reason,
        answer.stop_reason,
        job.params.stop,
        has_calls=any(block["type"] == "tool_use" for block in message["content"]),
    )
    return message


async def _stream_events(service: GenerationService, job: GenerationJob) -> AsyncGenerator[bytes]:
    tally = UsageTally(job)
    writer = BlockWriter()
    has_started = False
    async with aclosing(service.generate(job)) as pieces:
        async for piece in pieces:
            delta = piece.delta
            tally.note(piece)
            if not has_started:
                has_started = True
                yield _encode({"type": "message_start", "message": _empty_answer(service, job, tally)})
            for event in writer.write(delta):
                yield _encode(event)
            if delta.finish_reason is not None:
                for event in writer.close():
                    yield _encode(event)
                reason, stop = write_stop(
                    delta.finish_reason, delta.stop_reason, job.params.stop, has_calls=writer.calls_tools
                )
                end = {"stop_reason": reason, "stop_sequence": stop}
                yield _encode({"type": "message_delta", "delta": end, "usage": write_usage(tally)})
    yield _encode({"type": "message_stop"})


def _empty_answer(service: GenerationService, job: GenerationJob, tally: UsageTally) -> MessageAnswer:
    return {
        "id": job.request_id,
        "type": "message",
        "role": "assistant",
        "model": service.model_name(job),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": write_usage(tally),
    }
