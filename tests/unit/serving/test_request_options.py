"""How a request is treated: who asks is the server's business, urgency and caching the client's."""

from __future__ import annotations

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.core.errors import EngineRestartingError, RequestError
from qwenstack.core.request_options import RequestOptions
from qwenstack.serving import create_app
from qwenstack.serving.config import ServeConfig

pytestmark = pytest.mark.anyio

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


async def test_what_a_request_says_reaches_the_engine(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    await client.post("/v1/chat/completions", json={**CHAT, "priority": -3, "cache_prompt": False})
    await client.post("/v1/completions", json={"prompt": "hi", "stream": True})
    assert llm.options == [RequestOptions(priority=-3, prefix_cache=False, stream=False), RequestOptions()]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi", "store": False}),
        ("/v1/messages", {**CHAT, "model": "default", "max_tokens": 5}),
        ("/api/chat", {**CHAT, "model": "default"}),
        ("/api/generate", {"prompt": "hi", "model": "default"}),
    ],
)
async def test_pieces_are_told_one_by_one_where_they_are_streamed(
    client: httpx.AsyncClient, llm: ToyLLM, path: str, body: dict[str, object], stream: bool
) -> None:
    answer = await client.post(path, json={**body, "stream": stream})
    assert answer.status_code == 200, answer.text
    assert [options.stream for options in llm.options] == [stream]


async def test_an_adapter_is_a_model_of_its_own(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.adapters = ("legal",)
    models = (await client.get("/v1/models")).json()["data"]
    assert [(model["id"], model.get("parent")) for model in models] == [("toy/echo", None), ("legal", "toy/echo")]
    assert (await client.get("/v1/models/legal")).json()["parent"] == "toy/echo"
    body = (await client.post("/v1/chat/completions", json={**CHAT, "model": "legal"})).json()
    assert body["model"] == "legal"
    assert llm.options[-1].adapter == "legal"
    refused = await client.post("/v1/chat/completions", json={**CHAT, "model": "medical"})
    assert refused.status_code == 404
    assert "'legal'" in refused.json()["error"]["message"]


async def test_sec_17_each_key_is_a_tenant_and_no_client_chooses_one(llm: ToyLLM) -> None:
    app = create_app(llm, ServeConfig(api_keys=("key-of-one", "key-of-two")))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        for key in ("key-of-one", "key-of-two", "key-of-one"):
            await client.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"})
        chosen = await client.post(
            "/v1/chat/completions", json={**CHAT, "tenant": "x"}, headers={"authorization": "Bearer key-of-one"}
        )
    first, second, third = (options.tenant for options in llm.options)
    assert first == third
    assert first != second
    assert "key" not in first
    assert chosen.status_code == 400


async def test_while_the_engine_is_started_again_a_request_is_told_to_come_back(
    client: httpx.AsyncClient, llm: ToyLLM
) -> None:
    llm.error = EngineRestartingError("The engine is being started again; try again in a moment.")
    answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["error"]["code"] == "engine_restarting"
    assert "started again" in answer.json()["error"]["message"]


async def test_a_grammar_that_cannot_be_used_is_blamed_on_the_field_it_came_from(
    client: httpx.AsyncClient, llm: ToyLLM
) -> None:
    llm.error = RequestError("The grammar cannot be used.", param="grammar", code="invalid_grammar")
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    answer = await client.post("/v1/chat/completions", json={**CHAT, "response_format": schema})
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("response_format", "invalid_grammar")


async def test_what_ended_an_answer_is_told_whole_and_streamed(client: httpx.AsyncClient) -> None:
    asked = {**CHAT, "stop": "h"}
    (choice,) = (await client.post("/v1/chat/completions", json=asked)).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "h")
    (own_end,) = (await client.post("/v1/chat/completions", json=CHAT)).json()["choices"]
    assert "stop_reason" not in own_end
    stream = (await client.post("/v1/chat/completions", json={**asked, "stream": True})).text
    assert '"stop_reason":"h"' in stream
    (completed,) = (await client.post("/v1/completions", json={"prompt": "hi", "stop": "h"})).json()["choices"]
    assert completed["stop_reason"] == "h"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"messages": []}, "at least 1 item, not 0."),
        ({**CHAT, "response_format": {"type": "xml"}}, "its `type` 'xml' must be one of 'text'"),
        (
            {**CHAT, "response_format": {"type": "x" * 1_000_000}},
            f"its `type` '{'x' * 37}...{'x' * 38}' must be one of",
        ),
    ],
)
async def test_a_refusal_speaks_the_users_words(client: httpx.AsyncClient, wrong: dict[str, object], told: str) -> None:
    message = (await client.post("/v1/chat/completions", json=wrong)).json()["error"]["message"]
    assert told in message
    assert "validation" not in message
    assert "Input" not in message
