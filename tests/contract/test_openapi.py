"""The OpenAPI document: it changes on purpose only, it is complete, and answers are what it says.

After a wanted change: `QWENSTACK_UPDATE_SNAPSHOTS=1 pytest tests/contract/test_openapi.py`, then read the difference.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import TypeAdapter

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serving"))

from toy_embedder import ToyEmbedder
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_admin_app, create_app
from qwenstack.serving.openapi import build_openapi
from qwenstack.serving.rest.health import Health
from qwenstack.serving.wire.anthropic import AnthropicErrorBody
from qwenstack.serving.wire.chat import ChatCompletion, ChatCompletionChunk
from qwenstack.serving.wire.completions import Completion, CompletionChunk
from qwenstack.serving.wire.embeddings import EmbeddingList
from qwenstack.serving.wire.errors import ErrorBody
from qwenstack.serving.wire.models import Model, ModelList
from qwenstack.serving.wire.ollama import OllamaErrorBody
from qwenstack.serving.wire.qwen3 import GenerateResponse
from qwenstack.serving.wire.responses import ResponseEvent, ResponseObject
from qwenstack.storage import open_database

SNAPSHOT = Path(__file__).with_name("test_openapi.snapshot.json")
ADMIN_SNAPSHOT = SNAPSHOT.with_name("test_admin_openapi.snapshot.json")
ROUTES_WITHOUT_DOCUMENT = {"/", "/openapi.json"}


@pytest.fixture(scope="module")
def document() -> dict:
    return json.loads(json.dumps(build_openapi(create_app(ToyLLM(), ServeConfig()))))


@pytest.fixture
def admin_document(tmp_path: Path) -> dict:
    public = create_app(ToyLLM(), ServeConfig(), database=open_database(f"sqlite:///{tmp_path / 'q.db'}"))
    return json.loads(json.dumps(create_admin_app(public, ServeConfig()).openapi()))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def test_the_document_is_the_one_that_was_read_and_agreed(document: dict) -> None:
    if os.environ.get("QWENSTACK_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    assert document == json.loads(SNAPSHOT.read_text())


def test_the_administration_s_document_is_the_one_that_was_read_and_agreed(admin_document: dict) -> None:
    if os.environ.get("QWENSTACK_UPDATE_SNAPSHOTS"):
        ADMIN_SNAPSHOT.write_text(json.dumps(admin_document, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    assert admin_document == json.loads(ADMIN_SNAPSHOT.read_text())


def test_every_route_and_every_reference_is_there(document: dict) -> None:
    app = create_app(ToyLLM(), ServeConfig())
    paths = {route.path.replace(":path", "") for route in app.router.routes}  # type: ignore[attr-defined]
    assert set(document["paths"]) == paths - ROUTES_WITHOUT_DOCUMENT
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_no_operation_promises_what_never_comes(document: dict) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert operation["summary"]
            assert operation["description"]
            assert ("security" in operation) == (path not in {"/livez", "/readyz", "/health"})


def check_shape(shape: type, answer: bytes) -> None:
    """Read an answer as its documented type, which drops what the type does not name, and miss nothing."""
    assert TypeAdapter(shape).validate_json(answer, strict=True) == json.loads(answer)


CHAT = {"messages": [{"role": "user", "content": "你好"}], "logprobs": True, "top_logprobs": 2, "n": 2}
ASK = {
    "input": "你好",
    "instructions": "x",
    "metadata": {"a": "b"},
    "reasoning": {"effort": "low"},
    "max_output_tokens": 5,
}
TEXT = {"prompt": ["你好", "x"], "logprobs": 2, "echo": True, "max_tokens": 100}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "body", "shape"),
    [
        ("POST", "/v1/chat/completions", CHAT, ChatCompletion),
        ("POST", "/v1/completions", TEXT, Completion),
        ("POST", "/v1/embeddings", {"input": "x"}, EmbeddingList),
        ("POST", "/v1/responses", ASK, ResponseObject),
        ("POST", "/v1/chat/completions", {"messages": []}, ErrorBody),
        ("POST", "/qwen3/generate", {"prompt": "x"}, GenerateResponse),
        ("GET", "/v1/models", None, ModelList),
        ("GET", "/v1/files", None, ErrorBody),
        ("GET", "/v1/batches", None, ErrorBody),
        ("GET", "/v1/models/default", None, Model),
        ("GET", "/livez", None, Health),
        ("GET", "/readyz", None, Health),
        ("GET", "/nothing", None, ErrorBody),
        ("POST", "/v1/messages", {"messages": []}, AnthropicErrorBody),
        ("GET", "/v1/messages/nothing", None, AnthropicErrorBody),
        ("GET", "/api/nothing", None, OllamaErrorBody),
    ],
)
async def test_an_answer_has_exactly_the_documented_shape(
    method: str, path: str, body: dict | None, shape: type
) -> None:
    app = create_app(ToyLLM(), ServeConfig(), embedder=ToyEmbedder())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = (await client.request(method, path, json=body)).content
    check_shape(shape, answer)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [("/v1/chat/completions", CHAT, ChatCompletionChunk), ("/v1/completions", TEXT, CompletionChunk)],
)
async def test_events_have_exactly_the_documented_shape(path: str, body: dict, shape: type) -> None:
    app = create_app(ToyLLM(), ServeConfig())
    streaming = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        text = (await client.post(path, json=streaming)).text
    *events, _ = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    for event in events:
        check_shape(shape, event.encode())


@pytest.mark.anyio
@pytest.mark.parametrize("says", ["<think>hm</think>你好", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'])
async def test_events_of_a_response_have_exactly_the_documented_shape(says: str) -> None:
    app = create_app(ToyLLM(says=says), ServeConfig())
    body = ASK | {"stream": True, "max_output_tokens": 200, "tools": [{"type": "function", "name": "f"}]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        text = (await client.post("/v1/responses", json=body)).text
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        check_shape(ResponseEvent, data.removeprefix("data: ").encode())
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]
