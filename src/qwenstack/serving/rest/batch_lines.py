"""What the lines of a batch may ask: the endpoints, without their connections."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from qwenstack.core.errors import RequestError
from qwenstack.core.request_options import MAX_PRIORITY
from qwenstack.serving.batch_runner import Answer
from qwenstack.serving.identity import Identity
from qwenstack.serving.responses import Responses
from qwenstack.serving.rest.chat import complete_chat, read_chat_request
from qwenstack.serving.rest.completions import complete_text, read_completion_request
from qwenstack.serving.rest.endpoint import Backend
from qwenstack.serving.service import GenerationJob
from qwenstack.serving.wire.chat import ChatCompletion, ChatCompletionRequest
from qwenstack.serving.wire.completions import Completion, CompletionRequest
from qwenstack.serving.wire.embeddings import EmbeddingList, EmbeddingRequest, write_embeddings
from qwenstack.serving.wire.responses import ResponseObject, ResponseRequest
from qwenstack.serving.wire.validation import read_body


def line_answers(backend: Backend, responses: Responses) -> Mapping[str, Answer]:
    """Return what answers a line, by endpoint."""
    service = backend.service

    async def answer_chat(document: object, caller: Identity, request_id: str) -> ChatCompletion:
        body = read_body(ChatCompletionRequest, document)
        _refuse("stream", is_asked=body.stream)
        return await complete_chat(service, _unhurried(await read_chat_request(service, body, caller, request_id)))

    async def answer_text(document: object, caller: Identity, request_id: str) -> Completion:
        body = read_body(CompletionRequest, document)
        _refuse("stream", is_asked=body.stream)
        job = _unhurried(await read_completion_request(service, body, caller, request_id))
        return await complete_text(service, job, echo=bool(body.echo))

    async def answer_response(document: object, caller: Identity, request_id: str) -> ResponseObject:
        body = read_body(ResponseRequest, document)
        _refuse("stream", is_asked=body.stream)
        _refuse("background", is_asked=body.background)
        draft = await responses.read(body, caller, request_id=request_id)
        return await responses.complete(replace(draft, job=_unhurried(draft.job)))

    async def answer_embeddings(document: object, caller: Identity, request_id: str) -> EmbeddingList:  # noqa: ARG001
        body = read_body(EmbeddingRequest, document)
        made = await backend.embeddings.embed(body.to_job(), model=body.model, caller=caller)
        return await asyncio.to_thread(write_embeddings, made, body.encoding_format)

    return {
        "/v1/chat/completions": answer_chat,
        "/v1/completions": answer_text,
        "/v1/responses": answer_response,
        "/v1/embeddings": answer_embeddings,
    }


def _unhurried(job: GenerationJob) -> GenerationJob:
    """Let everything else that the tenant asks go first."""
    return replace(job, options=replace(job.options, priority=MAX_PRIORITY))


def _refuse(field: str, *, is_asked: bool | None) -> None:
    if is_asked:
        text = f"`{field}` means nothing in a batch; leave it out."
        raise RequestError(text, param=field, code="unsupported_parameter")
