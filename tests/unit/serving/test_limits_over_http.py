"""Limits as clients meet them: 429, when to come back, and what is left, on every wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import openai
import pytest
from toy_embedder import ToyEmbedder
from toy_llm import ToyLLM

from qwenstack.core.limits import Limits
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.identity import Identity
from qwenstack.serving.limiter import Limiter
from qwenstack.serving.service import GenerationJob, Prompt
from qwenstack.storage import ApiKeys, Database, open_database

pytestmark = pytest.mark.anyio
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@asynccontextmanager
async def serving(llm: ToyLLM, database: Database | None = None, **limits: int) -> AsyncGenerator[httpx.AsyncClient]:
    app = create_app(llm, ServeConfig(limits=Limits(**limits)), database=database)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client,
    ):
        yield client


async def test_where_nothing_is_limited_nothing_is_said(llm: ToyLLM) -> None:
    async with serving(llm) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if "ratelimit" in name]


async def test_answers_say_what_is_left(llm: ToyLLM) -> None:
    async with serving(llm, requests_per_minute=60, tokens_per_minute=6000) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    told = answer.headers
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("60", "59")
    assert told["x-ratelimit-limit-tokens"] == "6000"
    used = answer.json()["usage"]["total_tokens"]
    assert int(told["x-ratelimit-remaining-tokens"]) in (6000 - used, 6000 - used - 1)  # it fills while we look
    assert told["x-ratelimit-reset-requests"].endswith("s")


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/chat/completions", CHAT, {"type": "requests", "code": "rate_limit_exceeded"}),
        ("/v1/completions", {"prompt": "a"}, {"type": "requests", "code": "rate_limit_exceeded"}),
        ("/v1/messages", CHAT | {"model": "default"}, {"type": "rate_limit_error"}),
    ],
)
async def test_too_many_requests_are_refused_in_the_words_of_each_wire(
    llm: ToyLLM, path: str, body: dict[str, object], told: dict[str, str]
) -> None:
    async with serving(llm, requests_per_minute=1) as client:
        assert (await client.post(path, json=body)).status_code == 200
        refused = await client.post(path, json=body)
    assert refused.status_code == 429
    assert 55 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert told.items() <= refused.json()["error"].items()


async def test_sec_09_a_request_without_room_is_refused_before_the_engine_hears_of_it(llm: ToyLLM) -> None:
    async with serving(llm, tokens_per_minute=150) as client:
        whole = {"prompt": ["abc"] * 2, "n": 2, "max_tokens": 20}  # 6 tokens to read, 80 to write
        assert (await client.post("/v1/completions", json=whole | {"max_tokens": 200})).status_code == 400
        assert not llm.prompts
        llm.endless = True
        assert (await client.post("/v1/completions", json=whole)).status_code == 200
        num_prompts = len(llm.prompts)
        refused = await client.post("/v1/completions", json=whole)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "tokens"
    assert len(llm.prompts) == num_prompts


async def test_streams_that_run_count_and_those_that_ended_do_not(llm: ToyLLM) -> None:
    llm.endless, llm.step_s = True, 0.001
    stream = CHAT | {"stream": True, "max_tokens": 400}
    async with serving(llm, concurrent_requests=1) as client:
        # The client of this transport gets an answer when it is whole, so the two are asked for side by side.
        first = asyncio.create_task(client.post("/v1/chat/completions", json=stream))
        while not llm.num_open:
            await asyncio.sleep(0.001)
        refused = await client.post("/v1/chat/completions", json=CHAT)
        assert (await first).status_code == 200
        again = await client.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "concurrency"
    assert again.status_code == 200


async def test_the_budget_of_a_day_outlives_the_server(llm: ToyLLM, database: Database) -> None:
    key = ApiKeys(database).create(name="k", tenant="t", actor="me", limits=Limits(tokens_per_day=60)).text
    headers = {"Authorization": f"Bearer {key}"}
    for expected in (200, 429):
        async with serving(llm, database) as client:
            answer = await client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 40}, headers=headers)
            assert answer.status_code == expected, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert 0 < int(answer.headers["retry-after"]) <= 86_400


async def test_a_key_is_limited_while_the_server_runs(llm: ToyLLM, database: Database) -> None:
    keys = ApiKeys(database)
    made = keys.create(name="k", tenant="t", actor="me")
    headers = {"Authorization": f"Bearer {made.text}"}
    async with serving(llm, database) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        keys.limit(made.key.id, Limits(requests_per_minute=1), actor="me")
        async with asyncio.timeout(10):
            while (await client.get("/v1/models", headers=headers)).status_code == 200:
                await asyncio.sleep(0.05)


async def test_openais_client_sees_a_rate_limit(llm: ToyLLM) -> None:
    async with serving(llm, requests_per_minute=1) as http:
        client = openai.AsyncOpenAI(
            api_key="any key", base_url="http://localhost:8000/v1", http_client=http, max_retries=0
        )
        await client.models.list()
        with pytest.raises(openai.RateLimitError) as refused:
            await client.models.list()
    assert refused.value.code == "rate_limit_exceeded"
    assert int(refused.value.response.headers["retry-after"]) > 50


async def test_metrics_and_health_are_not_limited(llm: ToyLLM) -> None:
    async with serving(llm, requests_per_minute=1) as client:
        for path in ("/livez", "/readyz", "/metrics") * 3:
            assert (await client.get(path)).status_code == 200


FULL_PROMPT = "x" * 500
TURNS = [{"role": "user", "content": FULL_PROMPT[:490]}]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": FULL_PROMPT, "max_tokens": 50}, "max_tokens"),
        ("/v1/chat/completions", {"messages": TURNS, "model": "default", "max_tokens": 50}, "max_tokens"),
        (
            "/v1/chat/completions",
            {"messages": TURNS, "model": "default", "max_completion_tokens": 50},
            "max_completion_tokens",
        ),
        ("/v1/responses", {"input": TURNS, "max_output_tokens": 50, "store": False}, "max_output_tokens"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "x" * 470}], "model": "default", "max_tokens": 50},
            "max_tokens",
        ),
        ("/qwen3/generate", {"prompt": FULL_PROMPT[:490], "max_length": 50}, "max_length"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_does_not_fit_is_refused_in_the_words_of_its_wire(
    client: httpx.AsyncClient, path: str, body: dict[str, object], field: str, stream: bool
) -> None:
    answer = await client.post(path, json=body if path.startswith("/qwen3") else {**body, "stream": stream})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert f"`{field}` is 50, together more than the 512" in error["message"]
    assert error.get("param", field) == field


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": FULL_PROMPT}),
        ("/api/chat", {"model": "default", "messages": TURNS, "options": {"num_predict": 50}}),
        ("/api/generate", {"model": "default", "prompt": TURNS[0]["content"], "options": {"num_predict": 9999}}),
        ("/api/generate", {"model": "default", "prompt": "a", "suffix": "b", "options": {"num_predict": 512}}),
    ],
)
async def test_a_limit_that_nobody_set_or_that_is_a_ceiling_gives_way(
    client: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    assert (await client.post(path, json={**body, "stream": False})).status_code == 200


async def test_each_prompt_has_the_room_that_it_leaves(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json={"prompt": ["x" * 510, "x"], "logprobs": 0})
    assert [len(choice["logprobs"]["tokens"]) for choice in answer.json()["choices"]] == [2, 8]


async def test_texts_to_embed_are_charged_as_prompts_are(llm: ToyLLM) -> None:
    embedder = ToyEmbedder()
    app = create_app(llm, ServeConfig(limits=Limits(tokens_per_minute=100)), embedder=embedder)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        body = {"input": ["letters"] * 10}
        assert (await client.post("/v1/embeddings", json=body)).status_code == 200
        num_embedded = len(embedder.seen)
        refused = await client.post("/v1/embeddings", json=body)
        too_large = await client.post("/v1/embeddings", json={"input": ["letters"] * 20})
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    assert too_large.status_code == 400
    assert "send less at once" in too_large.json()["error"]["message"]
    assert len(embedder.seen) == num_embedded


async def test_sec_09_texts_to_embed_are_read_only_for_who_has_a_place_and_tokens_left(llm: ToyLLM) -> None:
    embedder = ToyEmbedder(may_read=asyncio.Event())
    assert embedder.may_read is not None
    limits = Limits(concurrent_requests=1, tokens_per_day=5)
    app = create_app(llm, ServeConfig(limits=limits), embedder=embedder)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        body = {"model": "default", "input": ["abcde"]}
        first = asyncio.create_task(client.post("/v1/embeddings", json=body))
        while not embedder.num_read:
            await asyncio.sleep(0)
        refused = [await client.post(path, json=body) for path in ("/v1/embeddings", "/api/embed")]
        embedder.may_read.set()
        assert (await first).status_code == 200
        refused.append(await client.post("/v1/embeddings", json=body))
    assert [answer.status_code for answer in refused] == [429, 429, 429]
    assert embedder.num_read == 1


async def test_sec_09_whoever_leaves_before_the_first_token_has_paid_for_the_prompt(llm: ToyLLM) -> None:
    llm.first_step_s = 60
    app = create_app(llm, ServeConfig(limits=Limits(tokens_per_minute=1000)))
    service = app.state.parts.backend.service
    limiter: Limiter = app.state.parts.limiter
    caller = Identity(accesses=frozenset())
    job = GenerationJob(
        request_id="r",
        prompts=[Prompt(token_ids=[1] * 300)],
        params=SamplingParams(max_tokens=200),
        options=RequestOptions(),
        caller=caller,
    )
    waiting = asyncio.create_task(anext(service.generate(job)))
    while not llm.num_open:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    left = int(dict(limiter.headers(caller))[b"x-ratelimit-remaining-tokens"])
    assert 700 <= left <= 720  # the answer's 200 are back; it fills by 17 a second
