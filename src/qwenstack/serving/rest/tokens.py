"""`POST /tokenize`, `POST /detokenize`, `POST /apply-template`."""

from __future__ import annotations

import asyncio

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.rest.endpoint import Backend, error_responses, identity_of, json_response, key_router
from qwenstack.serving.wire.tokens import (
    ApplyTemplateRequest,
    ApplyTemplateResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenPiece,
    write_piece,
)

_RESPONSES = error_responses(400, 404, 413, 415, 500)


def token_routes(backend: Backend) -> APIRouter:
    """Make the endpoints."""
    router = key_router()
    service = backend.service

    @router.post("/tokenize", summary="Turn a text into tokens", response_model=TokenizeResponse, responses=_RESPONSES)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        """Turn a text, or a conversation as the model reads it, into tokens."""
        caller = identity_of(request)
        service.adapter_of(body.model, caller)
        source = body.source()
        if isinstance(source, str):
            reading = service.tokenize(source, caller)
        else:
            reading = service.tokenize_chat(source, caller, tools=body.to_tools(), enable_thinking=body.wants_thinking)
        token_ids = await backend.run(request, reading)

        def write_pieces() -> list[TokenPiece]:
            return [write_piece(token_id, service.token_bytes(token_id)) for token_id in token_ids]

        answer: TokenizeResponse = {
            "tokens": await asyncio.to_thread(write_pieces) if body.with_pieces else token_ids,
            "count": len(token_ids),
            "max_model_len": service.card.max_model_len,
        }
        return json_response(answer)

    @router.post(
        "/detokenize", summary="Turn tokens into a text", response_model=DetokenizeResponse, responses=_RESPONSES
    )
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        """Turn tokens into the text that they stand for, control tokens included."""
        service.adapter_of(body.model, identity_of(request))
        answer: DetokenizeResponse = {"content": await service.detokenize(body.tokens)}
        return json_response(answer)

    @router.post(
        "/apply-template",
        summary="Write a conversation as the model reads it",
        response_model=ApplyTemplateResponse,
        responses=_RESPONSES,
    )
    async def apply_template(body: ApplyTemplateRequest, request: Request) -> Response:
        """Write a conversation as the model reads it."""
        caller = identity_of(request)
        service.adapter_of(body.model, caller)
        reading = service.tokenize_chat(
            body.to_messages(), caller, tools=body.to_tools(), enable_thinking=body.wants_thinking
        )
        token_ids = await backend.run(request, reading)
        answer: ApplyTemplateResponse = {"prompt": await asyncio.to_thread(service.text_of, token_ids)}
        return json_response(answer)

    return router
