"""`qwenstack.v1.GenerationService`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.descriptor import ServiceDescriptor

from qwenstack.serving.grpc.answers import write_choice, write_delta, write_usage
from qwenstack.serving.grpc.method import Call, takes
from qwenstack.serving.grpc.requests import read_generation
from qwenstack.serving.grpc.v1 import generation_pb2
from qwenstack.serving.grpc.v1.generation_pb2 import GenerateRequest, GenerateResponse, StreamGenerateResponse
from qwenstack.serving.identity import Access
from qwenstack.serving.service import AnswerLimit, GenerationJob, GenerationService, UsageTally
from qwenstack.serving.wire.completions import DEFAULT_MAX_TOKENS, CompletionRequest


class GenerationRpc:
    """Answers conversations and texts."""

    descriptor: ServiceDescriptor = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]

    def __init__(self, service: GenerationService) -> None:
        """Ask this model."""
        self._service = service

    @takes(Access.INFERENCE)
    async def generate(self, request: GenerateRequest, call: Call) -> GenerateResponse:
        """Answer when the whole answer is there."""
        job = await self._read_job(request, call)
        created = int(time.time())
        tally = UsageTally(job)
        (output,) = await self._service.complete(job, tally)
        return GenerateResponse(
            id=job.request_id,
            model=self._service.model_name(job),
            created=created,
            choices=[write_choice(answer, self._service.token_bytes) for answer in output.outputs],
            usage=write_usage(tally),
        )

    @takes(Access.INFERENCE)
    async def stream_generate(self, request: GenerateRequest, call: Call) -> AsyncGenerator[StreamGenerateResponse]:
        """Answer piece by piece."""
        job = await self._read_job(request, call)
        created, model = int(time.time()), self._service.model_name(job)
        tally = UsageTally(job)
        calling: set[int] = set()
        async with aclosing(self._service.generate(job)) as pieces:
            async for piece in pieces:
                tally.note(piece)
                delta = piece.delta
                if delta.tool_calls:
                    calling.add(delta.index)
                choice = write_delta(delta, self._service.token_bytes, has_calls=delta.index in calling)
                if choice is not None:
                    yield StreamGenerateResponse(id=job.request_id, model=model, created=created, choices=[choice])
        yield StreamGenerateResponse(id=job.request_id, model=model, created=created, usage=write_usage(tally))

    async def _read_job(self, request: GenerateRequest, call: Call) -> GenerationJob:
        body = read_generation(request)
        adapter = self._service.adapter_of(body.model, call.identity)
        options = body.request_options(tenant=call.identity.tenant, adapter=adapter)
        changes = body.sampling_changes()
        if isinstance(body, CompletionRequest):
            limit = AnswerLimit(is_ceiling=body.max_tokens is None)
            params = self._service.choose_params(changes, max_tokens=DEFAULT_MAX_TOKENS, limit=limit)
            prompt = await self._service.read_text(request.prompt, call.identity)
        else:
            limit = AnswerLimit(field=body.max_tokens_field)
            params = self._service.choose_params(changes, limit=limit)
            prompt = await self._service.read_chat(
                body.to_messages(), call.identity, tools=body.to_tools(), enable_thinking=body.wants_thinking()
            )
        request_id = f"gen-{call.request_id}"
        return GenerationJob(
            request_id=request_id, prompts=[prompt], params=params, options=options, caller=call.identity, limit=limit
        )
