"""Tenants as labels of metrics, and the metrics that dashboards of vLLM look for."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.tenant_labels import NAMELESS, OTHERS, TenantLabels

VLLM_NAMES = [
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
]


@given(st.lists(st.text(max_size=3), max_size=40), st.integers(0, 4))
def test_sec_09_labels_are_few_and_stay_what_they_are(tenants: list[str], most: int) -> None:
    labels = TenantLabels(most)
    given = {tenant: labels.label(tenant) for tenant in tenants}
    assert all(labels.label(tenant) == label for tenant, label in given.items())
    own = {tenant for tenant, label in given.items() if label not in {NAMELESS, OTHERS}}
    assert len(own) <= most
    assert all(given[tenant] == tenant for tenant in own)


async def samples(client: httpx.AsyncClient, **headers: str) -> dict[tuple[str, str], float]:
    """Read the metrics: by name and tenant."""
    page = (await client.get("/metrics", headers=headers)).text
    return {
        (sample.name, sample.labels.get("tenant", "")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.mark.anyio
async def test_tokens_are_counted_for_each_tenant() -> None:
    keys = ("sk-the-first-key", "sk-the-second-key")
    app = create_app(ToyLLM(), ServeConfig(api_keys=keys))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        for key, text, n in ((keys[0], "ab", 1), (keys[0], "cde", 2), (keys[1], "f", 1)):
            body = {"prompt": text, "n": n, "temperature": 0, "max_tokens": 5}
            answer = await client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        found = await samples(client, Authorization=f"Bearer {keys[0]}")
    prompt = sorted(value for (name, _), value in found.items() if name == "qwenstack:tenant_prompt_tokens_total")
    written = sorted(value for (name, _), value in found.items() if name == "qwenstack:tenant_generation_tokens_total")
    assert (prompt, written) == ([1, 5], [5, 15])
    assert not any(key in str(found) for key in keys)


@pytest.mark.anyio
async def test_the_names_of_vllm_and_ours_are_there(client: httpx.AsyncClient) -> None:
    await client.post("/v1/completions", json={"prompt": "x"})
    found = await samples(client)
    names = {name for name, _ in found}
    assert set(VLLM_NAMES) <= names
    assert found["qwenstack:oom_total", ""] == 2  # what the toy model reports
    assert found["qwenstack:tenant_prompt_tokens_total", NAMELESS] == 1
    assert found["http_requests_in_flight", ""] == 1  # the one that asks
