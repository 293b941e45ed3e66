"""The small endpoints: models, `/qwen3/generate`, health, metrics, and the configuration."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError
from qwenstack.serving import ServeConfig, create_app

pytestmark = pytest.mark.anyio


async def test_the_model_is_listed_and_described(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("toy/echo", "model", 512)
    for name in ("toy/echo", "default"):
        assert (await client.get(f"/v1/models/{name}")).json() == model
    missing = await client.get("/v1/models/toy/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_served_name_takes_the_place_of_the_engines(llm: ToyLLM) -> None:
    app = create_app(llm, ServeConfig(served_model_name="qwen"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "qwen"
        body = {"model": "qwen", "prompt": "x"}
        assert (await client.post("/v1/completions", json=body)).json()["model"] == "qwen"
        assert (await client.post("/v1/completions", json=body | {"model": "toy/echo"})).status_code == 404


async def test_generate_takes_the_prompt_for_one_user_message(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    response = await client.post("/qwen3/generate", json={"prompt": "你好"})
    assert response.json() == {"output": "echo: [user] 你好"}
    assert llm.seen[-1].max_tokens == 256
    assert (await client.post("/qwen3/generate", json={"prompt": "hi", "max_length": 4})).json() == {"output": "echo"}


@pytest.mark.parametrize("name", ["toy/echo:latest", "default:latest", "pirate:latest", "toy/echo:pirate:latest"])
async def test_a_name_that_ollama_lists_is_known_on_all_wires(
    client: httpx.AsyncClient, llm: ToyLLM, name: str
) -> None:
    llm.adapters = ("pirate",)
    turns = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    assert (await client.post("/v1/chat/completions", json=turns)).status_code == 200
    assert (await client.post("/v1/messages", json=turns | {"max_tokens": 3})).status_code == 200
    assert (await client.post("/api/chat", json=turns)).status_code == 200
    assert (await client.get(f"/v1/models/{name}")).json()["id"] == ("pirate" if "pirate" in name else "toy/echo")
    missing = await client.post("/v1/chat/completions", json=turns | {"model": "other:latest"})
    assert (missing.status_code, "'other:latest' is not served" in missing.text) == (404, True)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "max_length": 0}, "max_length"),
        ({"prompt": "x", "max_length": 513}, "max_length"),
        ({"prompt": "x", "max_length": "5"}, "max_length"),
        ({"prompt": "x", "max_tokens": 5}, "max_tokens"),
    ],
)
async def test_generate_names_what_is_wrong(client: httpx.AsyncClient, body: dict[str, object], param: str) -> None:
    response = await client.post("/qwen3/generate", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_the_models_defaults_hold_where_a_request_has_none(llm: ToyLLM) -> None:
    config = ServeConfig(default_sampling={"temperature": 0.7, "top_p": 0.8, "top_k": 20})
    app = create_app(llm, config)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        await client.post("/v1/completions", json={"prompt": "x"})
        await client.post("/v1/completions", json={"prompt": "x", "temperature": 0, "top_k": 0})
    assert [(params.temperature, params.top_p, params.top_k) for params in llm.seen] == [(0.7, 0.8, 20), (0, 0.8, 0)]


async def test_ready_follows_the_engine_and_live_does_not(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert (await client.get(path)).status_code == 200
    llm.is_ready = False
    assert (await client.get("/livez")).status_code == 200
    for path in ("/readyz", "/health"):
        response = await client.get(path)
        assert response.status_code == 503
        assert "engine does not answer" in response.json()["reason"]
        assert "secret" not in response.text


async def read_metrics(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


async def test_metrics_have_vllms_names_and_the_right_counts(client: httpx.AsyncClient) -> None:
    await client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 5, "n": 2})
    await client.post("/v1/completions", json={"prompt": "abc", "n": 99})
    metrics = await read_metrics(client)
    model = ("model_name", "toy/echo")
    assert metrics["vllm:request_success_total", frozenset({model, ("finished_reason", "length")})] == 2
    assert metrics["vllm:time_to_first_token_seconds_count", frozenset({model})] == 1
    assert metrics["vllm:inter_token_latency_seconds_count", frozenset({model})] == 8
    assert metrics["vllm:e2e_request_latency_seconds_count", frozenset({model})] == 1
    assert metrics["vllm:num_requests_running", frozenset({model})] == 0
    assert metrics["vllm:kv_cache_usage_perc", frozenset({model})] == 0
    assert metrics["vllm:generation_tokens_total", frozenset({model})] == 10
    for name in ("prompt_tokens", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits"):
        assert (f"vllm:{name}_total", frozenset({model})) in metrics
    handler = ("handler", "/v1/completions")
    for status in ("200", "400"):
        assert metrics["http_requests_total", frozenset({handler, ("method", "POST"), ("status", status)})] == 1


async def test_strange_paths_and_methods_do_not_grow_the_metrics(client: httpx.AsyncClient) -> None:
    for number in range(20):
        await client.get(f"/random/{number}")
        await client.request(f"VERB{number}", "/v1/models")
    names = {labels for name, labels in await read_metrics(client) if name == "http_requests_total"}
    assert len(names) <= 4


async def test_metrics_are_there_while_the_engine_is_not(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.is_ready = False
    metrics = await read_metrics(client)
    assert not any(name == "vllm:num_requests_running" for name, _ in metrics)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"port": 65_536}, "port"),
        ({"api_keys": ("short",)}, "API key"),
        ({"api_keys": ("with a space in it",)}, "API key"),
        ({"api_keys": ("中文中文中文中文",)}, "API key"),
        ({"allowed_hosts": ("chat.example:8000",)}, "allowed_hosts"),
        ({"allowed_origins": ("chat.example",)}, "allowed_origins"),
        ({"allowed_origins": ("https://chat.example/",)}, "allowed_origins"),
        ({"allowed_origins": ("null",)}, "allowed_origins"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"default_sampling": {"temperature": 5}}, "temperature"),
        ({"default_sampling": {"seed": 5}}, "seed"),
    ],
)
def test_a_wrong_setting_is_named(fields: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        ServeConfig(**fields)  # type: ignore[arg-type]
    assert "with a space in it" not in str(caught.value)


def test_sec_24_keys_are_not_shown() -> None:
    assert "sk-a-secret-key" not in repr(ServeConfig(api_keys=("sk-a-secret-key",)))


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/x", "/livez", "/api/tags", "/metrics"])
async def test_a_method_that_a_route_does_not_take_is_said_to_be_so_whatever_the_body(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.post(path, content=b"anything")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.anyio
async def test_allow_names_the_methods_of_all_routes_at_an_address(client: httpx.AsyncClient) -> None:
    answer = await client.put("/v1/responses/resp_1", json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")
