"""gRPC over the real engine: answers that fit what was asked for, and memory that comes back when callers leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import jsonschema
import pytest
from support.grpc_server import running_engine

from qwenstack.engine.client import EngineClient
from qwenstack.serving.grpc.v1.generation_pb2 import (
    FINISH_REASON_TOOL_CALLS,
    GenerateRequest,
    ResponseFormat,
    ToolChoice,
)
from qwenstack.serving.grpc.v1.generation_pb2_grpc import GenerationServiceStub
from qwenstack.serving.grpc.v1.messages_pb2 import ROLE_USER, FunctionDefinition, Message, Tool

HELLO = [Message(role=ROLE_USER, content="hello")]
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "is_new": {"type": "boolean"}},
    "required": ["size", "is_new"],
    "additionalProperties": False,
}
WITHIN_S = 10
"""The engine is told of a client that left, and ends within a step; the machine may be busy."""


@pytest.fixture
def with_server(tmp_path: Path) -> Callable[..., Any]:
    """Run a coroutine with the engine and a client's stub."""

    def run(body: Callable[[EngineClient, GenerationServiceStub], Awaitable[Any]]) -> Any:
        async def whole() -> Any:
            async with running_engine(tmp_path) as (engine, address), grpc.aio.insecure_channel(address) as channel:
                return await asyncio.wait_for(body(engine, GenerationServiceStub(channel)), 120)

        return asyncio.run(whole())

    return run


def test_the_answers_of_a_random_model_fit_the_schema_whole_and_streamed(with_server: Callable[..., Any]) -> None:
    text_format = ResponseFormat(type=ResponseFormat.TYPE_JSON_SCHEMA, json_schema=json.dumps(SCHEMA))
    request = GenerateRequest(
        messages=HELLO, response_format=text_format, temperature=1, seed=3, max_tokens=300, thinking_budget=5
    )

    async def ask(_: EngineClient, generation: GenerationServiceStub) -> tuple[str, str]:
        whole = await generation.Generate(request)
        pieces = [choice async for piece in generation.StreamGenerate(request) for choice in piece.choices]
        return whole.choices[0].message.content, "".join(piece.content for piece in pieces)

    whole, streamed = with_server(ask)
    jsonschema.validate(json.loads(whole), SCHEMA)
    assert streamed == whole


def test_a_call_that_is_demanded_comes_and_its_arguments_fit(with_server: Callable[..., Any]) -> None:
    tool = Tool(function=FunctionDefinition(name="order", parameters=json.dumps(SCHEMA)))
    request = GenerateRequest(
        messages=HELLO,
        tools=[tool],
        tool_choice=ToolChoice(function="order"),
        parallel_tool_calls=False,
        thinking_budget=4,  # a random model may think as long as it is let
        max_tokens=400,
        seed=3,  # the same call on every machine
    )

    async def ask(_: EngineClient, generation: GenerationServiceStub) -> Any:
        return (await generation.Generate(request)).choices[0]

    choice = with_server(ask)
    assert choice.finish_reason == FINISH_REASON_TOOL_CALLS
    (call,) = choice.message.tool_calls
    assert call.function.name == "order"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


@pytest.mark.parametrize("way", ["cancel", "deadline"])
def test_sec_22_memory_is_free_again_when_callers_leave(with_server: Callable[..., Any], way: str) -> None:
    request = GenerateRequest(messages=HELLO, n=4, max_tokens=180, ignore_eos=True, cache_prompt=False)

    async def leave(engine: EngineClient, generation: GenerationServiceStub) -> None:
        calls = [generation.StreamGenerate(request, timeout=0.5 if way == "deadline" else None) for _ in range(8)]
        for call in calls:
            if way == "cancel":
                await call.read()
                call.cancel()
        async with asyncio.timeout(WITHIN_S):
            while True:
                stats = await engine.stats()
                is_idle = stats.num_requests_running + stats.num_requests_waiting == 0
                if is_idle and stats.num_blocks_free == stats.num_blocks_total:
                    break
                await asyncio.sleep(0.01)

    with_server(leave)
