"""What the engine's guards look like from outside: a status of their own, counters with names that monitors know."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from toy_llm import ToyLLM

from qwenstack.core.errors import RequestError
from qwenstack.core.protocols import EngineStats
from qwenstack.serving.metrics import Metrics

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("stream", [False, True])
async def test_sec_07_a_quarantined_request_cannot_be_processed(
    client: httpx.AsyncClient, llm: ToyLLM, stream: bool
) -> None:
    llm.error = RequestError("The engine died 2 times while it computed this very request.", code="quarantined")
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "quarantined"
    assert "died 2 times" in response.json()["error"]["message"]


async def test_the_counters_of_guesses_and_guards_have_their_own_values() -> None:
    stats = EngineStats(
        num_requests_running=0,
        num_requests_waiting=0,
        num_blocks_total=1,
        num_blocks_free=1,
        num_preemptions=0,
        prompt_tokens=0,
        generation_tokens=0,
        prefix_cache_queries=0,
        prefix_cache_hits=0,
        num_steps=0,
        prefix_cache_disk_hits=11,
        num_draft_tokens=12,
        num_accepted_tokens=13,
        num_repetition_stops=14,
    )
    page = Metrics("toy").render(stats).decode()
    samples = {
        sample.name: sample.value for family in text_string_to_metric_families(page) for sample in family.samples
    }
    assert samples["qwenstack:prefix_cache_disk_hits_total"] == 11
    assert samples["vllm:spec_decode_num_draft_tokens_total"] == 12
    assert samples["vllm:spec_decode_num_accepted_tokens_total"] == 13
    assert samples["qwenstack:repetition_stops_total"] == 14
