"""Whether the time to an answer tells one tenant what another has asked: the method of the published audits.

Source: Gu et al. 2025, "Auditing Prompt Caching in Language Model APIs", arXiv:2502.07776, section 3: times of prompts
that somebody sent before, against those of prompts that nobody sent; a two-sample Kolmogorov-Smirnov test tells them
apart, or not.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack.engine import EngineConfig
from qwenstack.engine.client import EngineClient
from qwenstack.serving import ServeConfig, create_app

NUM_SAMPLES = int(os.environ.get("QWENSTACK_TIMING_SAMPLES", "80"))
"""Hits, and as many misses; the audit takes 250."""
MANY = 250
PROMPT_TOKENS = 768
SAME_TENANT_P = 1e-6
OTHER_TENANT_P = 0.01 if NUM_SAMPLES >= MANY else 1e-4
"""One honest run of a hundred falls below the first by chance: too many for every check of a change."""
SHAPE = replace(QWEN3_Q8, hidden_size=128, intermediate_size=256, num_layers=3)
KEYS = ("key of tenant a", "key of tenant b")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def clients(tmp_path: Path) -> AsyncGenerator[list[httpx.AsyncClient]]:
    config = EngineConfig(
        model_path=write_tiny_gguf(tmp_path / "tiny.gguf", SHAPE),
        model_name="tiny",
        num_threads=1,
        prefix_cache_dir=tmp_path / "cache",
    )
    engine = await EngineClient.start(config)
    keys = tuple(key.replace(" ", "-") for key in KEYS)
    app = create_app(engine, ServeConfig(api_keys=keys))
    made = [
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://localhost:8000",
            headers={"Authorization": f"Bearer {key}"},
        )
        for key in keys
    ]
    async with app.router.lifespan_context(app):
        yield made
    for client in made:
        await client.aclose()
    await engine.close()


@pytest.mark.anyio
@pytest.mark.timeout(600)
async def test_sec_16_the_time_to_an_answer_tells_nothing_of_other_tenants_prompts(
    clients: list[httpx.AsyncClient],
) -> None:
    ours, theirs = clients
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    same = await _hits_and_misses(ours, ours, rng)
    other = await _hits_and_misses(ours, theirs, rng)
    row = {"row": "sec-16", "samples": NUM_SAMPLES, "seed": seed, "same_tenant_p": same, "other_tenant_p": other}
    print(json.dumps(row))
    assert same < SAME_TENANT_P  # the cache is at work, and the method sees it
    assert other > OTHER_TENANT_P


async def _hits_and_misses(writer: httpx.AsyncClient, reader: httpx.AsyncClient, rng: random.Random) -> float:
    """Let one tenant send prompts; return how likely another's times to the same ones differ by chance alone."""
    hits: list[float] = []
    misses: list[float] = []
    for _ in range(NUM_SAMPLES):
        known, unknown = ([rng.randrange(33, 127) for _ in range(PROMPT_TOKENS)] for _ in range(2))
        await _time_to_answer(writer, known)
        # In an order that chance decides, so that whatever the machine does meets both alike.
        for prompt in rng.sample([known, unknown], 2):
            (hits if prompt is known else misses).append(await _time_to_answer(reader, prompt))
    return probability_of_one_source(hits, misses)


async def _time_to_answer(client: httpx.AsyncClient, prompt: Sequence[int]) -> float:
    started = time.perf_counter()
    answer = await client.post("/v1/completions", json={"prompt": list(prompt), "max_tokens": 1, "temperature": 0})
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - started


def probability_of_one_source(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test.

    Source: Press et al., Numerical Recipes, third edition, section 14.3.3.
    """
    first, second = sorted(one), sorted(other)
    distance = max(
        abs(bisect_right(first, value) / len(first) - bisect_right(second, value) / len(second))
        for value in (*first, *second)
    )
    size = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    scaled = (size + 0.12 + 0.11 / size) * distance
    if scaled < 0.3:  # where the series does not converge; the sum is 1 to nine digits
        return 1.0
    return min(1.0, 2 * sum((-1) ** (term - 1) * math.exp(-2 * (term * scaled) ** 2) for term in range(1, 101)))


def test_the_test_tells_apart_what_differs_and_only_that() -> None:
    rng = random.Random(3)
    drawn = [[rng.gauss(0, 1) for _ in range(250)] for _ in range(40)]
    same = [probability_of_one_source(one, other) for one, other in zip(drawn[::2], drawn[1::2], strict=True)]
    assert min(same) > 0.001
    assert sum(value < 0.1 for value in same) <= 6
    assert probability_of_one_source(drawn[0], [value + 1 for value in drawn[1]]) < 1e-6
