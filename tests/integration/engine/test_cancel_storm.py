"""Many streams that are given up at random moments: everything comes back, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM, EngineConfig
from qwenstack.engine.client import EngineClient

pytestmark = pytest.mark.timeout(1800)

NUM_STREAMS = int(os.environ.get("QWENSTACK_STORM_STREAMS", "200"))
NUM_ROUNDS = 5
FREE_WITHIN_S = 1.0
MOST_TOKENS = 40
BYSTANDERS = [[3, 1, 4, 1, 5, seed] for seed in range(8)]
LONG = SamplingParams(temperature=0.8, seed=1, max_tokens=200, ignore_eos=True)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return EngineConfig(
        model_path=write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8),
        model_name="tiny",
        num_threads=1,
        max_model_len=512,
        max_num_seqs=32,
        max_num_waiting=NUM_STREAMS + len(BYSTANDERS),
        prefix_cache_disk_bytes=0,
    )


async def give_up(client: EngineClient, name: str, prompt: list[int], after: int) -> int:
    """Read so many tokens of a stream, then leave."""
    seen = 0
    stream = client.generate(prompt, LONG, request_id=name)
    try:
        async for delta in stream:
            seen += len(delta.token_ids)
            if seen >= after:
                break
    finally:
        await stream.aclose()
    return seen


async def stay(client: EngineClient, name: str, prompt: list[int]) -> list[int]:
    return [token async for delta in client.generate(prompt, LONG, request_id=name) for token in delta.token_ids]


async def idle_after(client: EngineClient) -> float:
    """Return how long the engine takes until nothing is held any more."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        stats = await client.stats()
        if stats.num_requests_running + stats.num_requests_waiting == 0:
            assert stats.num_blocks_free == stats.num_blocks_total
            return loop.time() - began
        await asyncio.sleep(0.01)


def test_a_storm_of_cancellations_leaves_nothing_behind_and_nobody_else_notices(config: EngineConfig) -> None:
    llm = LLM(config.model_path, num_threads=1, max_model_len=512, prefix_cache_disk_bytes=0)
    alone = [llm.generate({"prompt_token_ids": prompt}, LONG)[0].outputs[0].token_ids for prompt in BYSTANDERS]
    source = random.Random(7)

    async def storm() -> None:
        client = await EngineClient.start(config)
        try:
            for turn in range(NUM_ROUNDS):
                staying = [
                    asyncio.create_task(stay(client, f"{turn}-stays-{at}", prompt))
                    for at, prompt in enumerate(BYSTANDERS)
                ]
                leaving = [
                    give_up(
                        client,
                        f"{turn}-leaves-{at}",
                        [source.randrange(256) for _ in range(source.randint(1, 60))],
                        source.randint(0, MOST_TOKENS),
                    )
                    for at in range(NUM_STREAMS)
                ]
                await asyncio.gather(*leaving)
                assert [await task for task in staying] == alone
                assert await idle_after(client) <= FREE_WITHIN_S
        finally:
            await client.close()

    asyncio.run(storm())


def test_blocks_of_streams_that_all_leave_at_once_are_free_within_a_second(config: EngineConfig) -> None:
    async def leave_together() -> None:
        client = await EngineClient.start(config)
        try:
            prompts = [[at % 250, 7, 7] for at in range(NUM_STREAMS)]
            tasks = [asyncio.create_task(stay(client, f"stream-{at}", prompt)) for at, prompt in enumerate(prompts)]
            await asyncio.sleep(0.5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await idle_after(client) <= FREE_WITHIN_S
        finally:
            await client.close()

    asyncio.run(leave_together())
