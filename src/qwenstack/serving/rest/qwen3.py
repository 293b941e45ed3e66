"""`POST /qwen3/generate`."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.core.messages import Message
from qwenstack.core.request_options import RequestOptions
from qwenstack.serving.rest.endpoint import (
    Backend,
    error_responses,
    identity_of,
    json_response,
    key_router,
    request_id_of,
)
from qwenstack.serving.service import DEFAULT_MODEL_NAME, AnswerLimit, GenerationJob, GenerationService
from qwenstack.serving.wire.qwen3 import GenerateRequest, GenerateResponse

_MAX_LENGTH = AnswerLimit(field="max_length")


def qwen3_routes(backend: Backend) -> APIRouter:
    """Make the endpoint."""
    router = key_router()

    @router.post(
        "/qwen3/generate",
        summary="Answer one message",
        response_model=GenerateResponse,
        responses=error_responses(400, 413, 415, 500, 503),
    )
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """Take the prompt for one user message and answer it."""
        caller = identity_of(request)
        adapter = backend.service.adapter_of(DEFAULT_MODEL_NAME, caller)
        reading = backend.service.read_chat([Message(role="user", content=body.prompt)], caller)
        prompt = await backend.run(request, reading)
        params = backend.service.choose_params({"max_tokens": body.max_length}, limit=_MAX_LENGTH)
        job = GenerationJob(
            request_id=f"gen-{request_id_of(request)}",
            prompts=[prompt],
            params=params,
            options=RequestOptions(tenant=caller.tenant, adapter=adapter),
            caller=caller,
            limit=_MAX_LENGTH,
        )
        return json_response(await backend.run(request, _complete(backend.service, job)))

    return router


async def _complete(service: GenerationService, job: GenerationJob) -> GenerateResponse:
    (output,) = await service.complete(job)
    return {"output": output.outputs[0].text}
