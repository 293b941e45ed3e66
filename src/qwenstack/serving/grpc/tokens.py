"""`qwenstack.v1.TokenService`."""

from __future__ import annotations

from google.protobuf.descriptor import ServiceDescriptor

from qwenstack.serving.grpc.method import Call, takes
from qwenstack.serving.grpc.requests import read_tokenization
from qwenstack.serving.grpc.v1 import tokens_pb2
from qwenstack.serving.grpc.v1.tokens_pb2 import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from qwenstack.serving.identity import Access
from qwenstack.serving.service import DEFAULT_MODEL_NAME, GenerationService


class TokenRpc:
    """Turns texts into tokens and back."""

    descriptor: ServiceDescriptor = tokens_pb2.DESCRIPTOR.services_by_name["TokenService"]

    def __init__(self, service: GenerationService) -> None:
        """Use this model's vocabulary."""
        self._service = service

    @takes(Access.INFERENCE)
    async def tokenize(self, request: TokenizeRequest, call: Call) -> TokenizeResponse:
        """Turn a text, or a conversation as the model reads it, into tokens."""
        body = read_tokenization(request)
        self._service.adapter_of(body.model, call.identity)
        source = body.source()
        if isinstance(source, str):
            token_ids = await self._service.tokenize(source, call.identity)
        else:
            token_ids = await self._service.tokenize_chat(
                source, call.identity, tools=body.to_tools(), enable_thinking=body.wants_thinking
            )
        return TokenizeResponse(tokens=token_ids, max_model_len=self._service.card.max_model_len)

    @takes(Access.INFERENCE)
    async def detokenize(self, request: DetokenizeRequest, call: Call) -> DetokenizeResponse:
        """Turn tokens into the text that they stand for."""
        self._service.adapter_of(request.model or DEFAULT_MODEL_NAME, call.identity)
        return DetokenizeResponse(content=await self._service.detokenize(request.tokens))
