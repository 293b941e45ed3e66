"""`POST /api/chat`, `POST /api/generate`: Ollama's wire."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import ClassVar, TypeAlias

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.core.infill import Gap
from qwenstack.core.outputs import CompletionOutput, OutputDelta
from qwenstack.core.request_options import RequestOptions
from qwenstack.serving.access import KeyRoute
from qwenstack.serving.rest.endpoint import (
    Backend,
    StreamForm,
    generation_responses,
    identity_of,
    json_response,
    key_router,
    request_id_of,
)
from qwenstack.serving.service import AnswerLimit, GenerationJob, GenerationService, Prompt, UsageTally
from qwenstack.serving.wire.errors import ErrorAnswer, WriteError
from qwenstack.serving.wire.ollama import (
    AnswerTurn,
    Line,
    OllamaChatLine,
    OllamaChatRequest,
    OllamaErrorBody,
    OllamaGenerateLine,
    OllamaGenerateRequest,
    RequestFields,
    Stopwatch,
    write_calls,
    write_ollama_error,
    write_time,
    write_turn,
)

_LINES = "application/x-ndjson"
_NUM_PREDICT = AnswerLimit(field="options.num_predict", is_ceiling=True)
_STREAM_DESCRIPTION = "Unless `stream` is false: lines of JSON, the last one with `done`."

WriteLine: TypeAlias = Callable[[Line, AnswerTurn], Line]
"""Puts what came to an answer into a line."""


class OllamaRoute(KeyRoute):
    """A route whose clients are Ollama's."""

    write_error: ClassVar[WriteError] = staticmethod(write_ollama_error)


def ollama_routes(backend: Backend) -> APIRouter:
    """Make the endpoints."""
    router = key_router(OllamaRoute, OllamaErrorBody)
    service = backend.service
    responses = generation_responses(_STREAM_DESCRIPTION, media_type=_LINES, body=OllamaErrorBody)

    async def answer(
        body: RequestFields,
        request: Request,
        options: RequestOptions,
        prompt: Prompt | None,
        write_line: WriteLine,
        gap: Gap | None = None,
    ) -> Response:
        params = service.choose_params(body.sampling_changes(), limit=_NUM_PREDICT)
        if gap is not None:
            prompt, params = await backend.run(
                request, service.read_gap(gap, params, identity_of(request), limit=_NUM_PREDICT)
            )
        if prompt is None:  # it only asks for the model to be loaded
            return json_response(_loaded(options.adapter or service.card.id, write_line))
        job = GenerationJob(
            request_id=f"ollama-{request_id_of(request)}",
            prompts=[prompt],
            params=params,
            options=options,
            caller=identity_of(request),
            limit=_NUM_PREDICT,
        )
        if body.wants_stream:
            return backend.stream(request, _stream_lines(service, job, write_line), OLLAMA_STREAM)
        return json_response(await backend.run(request, _complete(service, job, write_line)))

    @router.post(
        "/api/chat", summary="Answer a conversation (Ollama)", response_model=OllamaChatLine, responses=responses
    )
    async def chat(body: OllamaChatRequest, request: Request) -> Response:
        """Go on with a conversation."""
        options = _options_of(service, body, request)
        prompt = None
        if body.messages:
            messages = [turn.to_message() for turn in body.messages]
            reading = service.read_chat(
                messages, identity_of(request), tools=body.to_tools(), enable_thinking=body.wants_thinking
            )
            prompt = await backend.run(request, reading)
        return await answer(body, request, options, prompt, _write_chat_line)

    @router.post(
        "/api/generate", summary="Answer a prompt (Ollama)", response_model=OllamaGenerateLine, responses=responses
    )
    async def generate(body: OllamaGenerateRequest, request: Request) -> Response:
        """Answer a prompt, or go on with it."""
        options = _options_of(service, body, request)
        caller, prompt, gap = identity_of(request), None, body.to_gap()
        if body.prompt and body.raw:
            prompt = await backend.run(request, service.read_text(body.prompt, caller))
        elif body.prompt and gap is None:
            reading = service.read_chat(body.to_messages(), caller, enable_thinking=body.wants_thinking)
            prompt = await backend.run(request, reading)
        return await answer(body, request, options, prompt, _write_generate_line, gap)

    return router


def _encode(line: object) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _encode_error(answer: ErrorAnswer) -> bytes:
    return _encode(write_ollama_error(answer))


OLLAMA_STREAM = StreamForm(media_type=_LINES, ping=b"", write_error=_encode_error)


def _options_of(service: GenerationService, body: RequestFields, request: Request) -> RequestOptions:
    """Return whose request it is, and the adapter that a name stands for."""
    caller = identity_of(request)
    return RequestOptions(tenant=caller.tenant, adapter=service.adapter_of(body.model, caller))


def _new_line(model: str) -> Line:
    return {"model": model, "created_at": write_time(time.time()), "done": False}


def _write_chat_line(line: Line, turn: AnswerTurn) -> OllamaChatLine:
    return {**line, "message": turn}


def _write_generate_line(line: Line, turn: AnswerTurn) -> OllamaGenerateLine:
    written: OllamaGenerateLine = {**line, "response": turn["content"]}
    if "thinking" in turn:
        written["thinking"] = turn["thinking"]
    return written


def _loaded(model: str, write_line: WriteLine) -> Line:
    line = _new_line(model)
    line["done"], line["done_reason"] = True, "load"
    return write_line(line, {"role": "assistant", "content": ""})


async def _complete(service: GenerationService, job: GenerationJob, write_line: WriteLine) -> Line:
    tally, watch = UsageTally(job), Stopwatch(time.monotonic_ns())
    whole = CompletionOutput(index=0)
    async with aclosing(service.generate(job.unstreamed)) as pieces:
        async for piece in pieces:
            tally.note(piece)
            watch.note(time.monotonic_ns())
            whole.add(piece.delta)
    line = _new_line(service.model_name(job))
    watch.close(line, whole.finish_reason, tally, time.monotonic_ns())
    return write_line(line, write_turn(whole))


async def _stream_lines(service: GenerationService, job: GenerationJob, write_line: WriteLine) -> AsyncGenerator[bytes]:
    """Write a line for each piece; calls come whole, before the last line."""
    tally, watch = UsageTally(job), Stopwatch(time.monotonic_ns())
    model = service.model_name(job)
    whole = CompletionOutput(index=0)
    async with aclosing(service.generate(job)) as pieces:
        async for piece in pieces:
            tally.note(piece)
            watch.note(time.monotonic_ns())
            whole.add(piece.delta)
            turn = _turn_of(piece.delta)
            if turn is not None:
                yield _encode(write_line(_new_line(model), turn))
    calls = write_calls(whole.tool_calls)
    if calls:
        yield _encode(write_line(_new_line(model), {"role": "assistant", "content": "", "tool_calls": calls}))
    line = _new_line(model)
    watch.close(line, whole.finish_reason, tally, time.monotonic_ns())
    yield _encode(write_line(line, {"role": "assistant", "content": ""}))


def _turn_of(delta: OutputDelta) -> AnswerTurn | None:
    """Return what a piece adds to the turn; None where that is nothing."""
    if not delta.text and not delta.reasoning_text:
        return None
    turn: AnswerTurn = {"role": "assistant", "content": delta.text}
    if delta.reasoning_text:
        turn["thinking"] = delta.reasoning_text
    return turn
