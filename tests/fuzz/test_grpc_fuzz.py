"""Random damage to calls of the real server over the real engine: an answer or a refusal, never a failure of ours.

`QWENSTACK_GRPC_CASES` sets the number of calls (400), `QWENSTACK_FUZZ_SEED` which; 0 draws new ones. A message is
damaged as a message (fields of every type get edge values, items are repeated and dropped) and as bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthListRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from support.grpc_server import running_engine
from support.random_schemas import random_schema

from qwenstack.serving.grpc.v1.embeddings_pb2 import EmbedRequest
from qwenstack.serving.grpc.v1.generation_pb2 import GenerateRequest, ResponseFormat, ToolChoice
from qwenstack.serving.grpc.v1.messages_pb2 import FunctionCall, FunctionDefinition, Message, Tool, ToolCall
from qwenstack.serving.grpc.v1.models_pb2 import ListModelsRequest
from qwenstack.serving.grpc.v1.tokens_pb2 import DetokenizeRequest, TokenizeRequest

NUM_CASES = int(os.environ.get("QWENSTACK_GRPC_CASES", "400"))
SEED = int(os.environ.get("QWENSTACK_FUZZ_SEED", "1")) or random.randrange(2**32)
AT_ONCE = 8
HANG_S = 120
NUMBERS = [0, 1, 2, 3, 7, 8, 9, 16, 127, 128, 255, 256, 300, 1024, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
FLOATS = [0.0, -0.0, 0.5, 1.0, 2.0, -2.0, 10.0, 100.0, -100.0, 1e308, 1e-308, float("nan"), float("inf"), -float("inf")]
TEXTS = ["", "a", "你好", "🌏\u200d", "\0", "<|im_end|>", "</think>", "x" * 300, "x" * 70_000, "{", "{}", "[]", "null"]
TEXTS += ['{"type": "object"}', "[" * 100, '{"a": ' * 70, "default", "nothing", '{"$ref": "#"}', "\ufffd", "tools[0]"]


def seeds() -> list[tuple[str, ProtoMessage]]:
    """Valid messages, with every field of the contract in one of them."""
    turns = [Message(role=1, content="Be brief."), Message(role=2, content="hello")]
    call = ToolCall(id="a", function=FunctionCall(name="f", arguments='{"x": 1}'))
    answered = [*turns, Message(role=3, tool_calls=[call]), Message(role=4, content="2", tool_call_id="a")]
    tool = Tool(function=FunctionDefinition(name="f", description="d", parameters='{"type": "object"}'))
    schema = ResponseFormat(type=3, json_schema='{"type": "integer"}')
    generations = [
        GenerateRequest(messages=turns, max_tokens=8, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=-3, n=2),
        GenerateRequest(
            messages=turns, max_tokens=8, stop=["a", "b"], stop_token_ids=[3], logit_bias={1: 2.0}, logprobs=2
        ),
        GenerateRequest(messages=turns, max_tokens=8, presence_penalty=1, frequency_penalty=1, repetition_penalty=1.1),
        GenerateRequest(prompt="x", max_tokens=8, min_tokens=2, ignore_eos=True, skip_special_tokens=False, logprobs=0),
        GenerateRequest(messages=answered, max_tokens=8, tools=[tool], tool_choice=ToolChoice(mode=3)),
        GenerateRequest(messages=answered, max_tokens=8, tools=[tool], tool_choice=ToolChoice(function="f")),
        GenerateRequest(messages=turns, max_tokens=8, response_format=schema, enable_thinking=True, thinking_budget=3),
        GenerateRequest(messages=turns, max_tokens=8, priority=3, cache_prompt=False, include_stop_str_in_output=True),
    ]
    service = "/qwenstack.v1.GenerationService/"
    return [
        *((service + name, message) for message in generations for name in ("Generate", "StreamGenerate")),
        ("/qwenstack.v1.EmbeddingService/Embed", EmbedRequest(input=["a", "你好"], input_type=2, truncate=True)),
        ("/qwenstack.v1.EmbeddingService/Embed", EmbedRequest(input=["a"], dimensions=384)),
        ("/qwenstack.v1.ModelService/ListModels", ListModelsRequest()),
        ("/qwenstack.v1.TokenService/Tokenize", TokenizeRequest(messages=turns, tools=[tool], enable_thinking=True)),
        ("/qwenstack.v1.TokenService/Tokenize", TokenizeRequest(prompt="x")),
        ("/qwenstack.v1.TokenService/Detokenize", DetokenizeRequest(tokens=[1, 2])),
        ("/grpc.health.v1.Health/Check", HealthCheckRequest()),
        ("/grpc.health.v1.Health/List", HealthListRequest()),
        *(
            ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", ServerReflectionRequest(**fields))
            for fields in (
                {"list_services": ""},
                {"file_containing_symbol": "qwenstack.v1.Message"},
                {"file_by_filename": "qwenstack/v1/tokens.proto"},
                {"file_containing_extension": {"containing_type": "qwenstack.v1.Message", "extension_number": 3}},
                {"all_extension_numbers_of_type": "qwenstack.v1.Message"},
            )
        ),
    ]


def damage(message: ProtoMessage, rng: random.Random) -> None:
    """Give one field another value, here or in a message within."""
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = rng.choice(fields)
    if field.is_repeated:
        damage_list(message, field, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        damage(getattr(message, field.name), rng)
        getattr(message, field.name).SetInParent()
    elif rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, value_for(field, rng))


def damage_list(message: ProtoMessage, field: FieldDescriptor, rng: random.Random) -> None:
    items: Any = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        items[value_for(key, rng)] = value_for(value, rng)
        return
    count = rng.choice([1, 1, 1, 2, 17, 129, 301, 1025])
    if items and rng.random() < 0.3:
        del items[rng.randrange(len(items))]
    elif field.type != FieldDescriptor.TYPE_MESSAGE:
        items.extend(value_for(field, rng) for _ in range(count if rng.random() < 0.2 else 1))
    elif items and rng.random() < 0.7:
        damage(rng.choice(list(items)), rng)
    else:
        item = items.add()
        damage(item, rng)
        items.extend([item] * (count if rng.random() < 0.2 else 1))


def value_for(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.cpp_type in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return rng.choice([*FLOATS, rng.uniform(-3, 3)])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.name in {"json_schema", "parameters"} and rng.random() < 0.5:
            return json.dumps(random_schema(rng))
        text = rng.choice(TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
        FieldDescriptor.CPPTYPE_ENUM: (-1, 6),
    }[field.cpp_type]
    return max(low, min(high, rng.choice([*NUMBERS, *(-number for number in NUMBERS[:9])])))


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
        case 2:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 3:
            return data[:at] + data[at + rng.randrange(1, 9) :]
        case _:
            return data + data[at:]


def cases(rng: random.Random) -> Iterator[tuple[str, list[bytes]]]:
    known = seeds()
    for _ in range(NUM_CASES):
        path, seed = rng.choice(known)
        message = type(seed)()
        message.CopyFrom(seed)
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            damage(message, rng)
        data = message.SerializeToString()
        if rng.random() < 0.3:
            data = damage_bytes(data, rng)
        if rng.random() < 0.05:
            path = rng.choice(known)[0]
        yield path, [data] * rng.choice([1] * 20 + [0, 2])


async def code_of(channel: grpc.aio.Channel, path: str, messages: list[bytes]) -> str:
    call = channel.stream_stream(path)(iter(messages), timeout=HANG_S)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.timeout(max(600, NUM_CASES))
def test_sec_f5_no_call_makes_the_server_or_the_engine_fail(tmp_path: Path) -> None:
    async def fuzz() -> Counter[str]:
        codes: Counter[str] = Counter()
        waiting = cases(random.Random(SEED))
        async with running_engine(tmp_path) as (engine, address), grpc.aio.insecure_channel(address) as channel:
            pid = engine.pid

            async def call_on() -> None:
                for path, messages in waiting:
                    codes[await code_of(channel, path, messages)] += 1

            await asyncio.gather(*(call_on() for _ in range(AT_ONCE)))
            assert engine.pid == pid
            stats = await engine.stats()
            assert stats.num_requests_running + stats.num_requests_waiting == 0
            assert stats.num_blocks_free == stats.num_blocks_total
        return codes

    codes = asyncio.run(fuzz())
    print(f"seed {SEED}: {dict(codes)}")
    assert sum(codes.values()) == NUM_CASES
    assert set(codes) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}, codes
    assert codes["OK"] > NUM_CASES / 10
    assert codes["INVALID_ARGUMENT"] > NUM_CASES / 10
