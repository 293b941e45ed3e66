"""The prefix cache across the death of the engine, in real processes; its speed is `benches/prefix_cache.py`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import EngineConfig
from qwenstack.engine.client import EngineClient

Result = TypeVar("Result")

PROMPT = [int(token) for token in np.random.default_rng(5).integers(0, 256, 2000)]
PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ALL_BUT_THE_LAST_BLOCK = 1984
"""Of 2,000 tokens in blocks of 16; at least one token is always computed."""


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return EngineConfig(
        model_path=write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8),
        model_name="tiny",
        num_threads=1,
        prefix_cache_dir=tmp_path / "prefix",
    )


def with_client(config: EngineConfig, body: Callable[[EngineClient], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        client = await EngineClient.start(config)
        try:
            return await asyncio.wait_for(body(client), 120)
        finally:
            await client.close()

    return asyncio.run(run())


async def ask(
    client: EngineClient, options: RequestOptions = RequestOptions(), prompt: list[int] = PROMPT
) -> tuple[list[int], int]:
    """Return the answer's tokens, and how many of the prompt's were not computed."""
    tokens: list[int] = []
    num_cached = 0
    async for delta in client.generate(prompt, PARAMS, request_id="one", options=options):
        tokens.extend(delta.token_ids)
        num_cached = max(num_cached, delta.num_cached_tokens)
    return tokens, num_cached


async def blocks_on_disk(folder: Path, count: int) -> None:
    """Wait until so many blocks are written."""
    for _ in range(500):
        if len(list(folder.glob("*.kv"))) >= count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{len(list(folder.glob('*.kv')))} blocks of {count} came to the disk")


def test_a_killed_engine_finds_its_prompts_again(config: EngineConfig) -> None:
    assert config.prefix_cache_dir is not None
    folder = config.prefix_cache_dir

    async def killed(client: EngineClient) -> list[int]:
        tokens, num_cached = await ask(client)
        assert num_cached == 0
        await blocks_on_disk(folder, 125)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        return tokens

    before = with_client(config, killed)
    after, num_cached = with_client(config, ask)
    assert num_cached == ALL_BUT_THE_LAST_BLOCK
    assert after == before


def test_a_damaged_block_is_noticed_dropped_and_computed_again(config: EngineConfig) -> None:
    assert config.prefix_cache_dir is not None
    folder = config.prefix_cache_dir

    async def fill(client: EngineClient) -> list[int]:
        tokens, _ = await ask(client)
        await blocks_on_disk(folder, 125)
        return tokens

    before = with_client(config, fill)
    files = sorted(folder.glob("*.kv"), key=lambda file: file.stat().st_mtime_ns)
    victim = files[40]
    content = bytearray(victim.read_bytes())
    content[-100] ^= 1
    victim.write_bytes(content)
    after, num_cached = with_client(config, ask)
    assert after == before
    assert 0 < num_cached < ALL_BUT_THE_LAST_BLOCK
    assert num_cached % 16 == 0


def test_sec_16_another_tenant_never_hits(config: EngineConfig) -> None:
    assert config.prefix_cache_dir is not None
    folder = config.prefix_cache_dir

    async def both(client: EngineClient) -> tuple[int, int, int]:
        _, first = await ask(client, RequestOptions(tenant="a"))
        _, other = await ask(client, RequestOptions(tenant="b"))
        _, again = await ask(client, RequestOptions(tenant="a"))
        await blocks_on_disk(folder, 250)
        return first, other, again

    assert with_client(config, both) == (0, 0, ALL_BUT_THE_LAST_BLOCK)
    assert with_client(config, lambda client: ask(client, RequestOptions(tenant="c")))[1] == 0
    assert with_client(config, lambda client: ask(client, RequestOptions(tenant="b")))[1] == ALL_BUT_THE_LAST_BLOCK


def test_a_request_may_stay_out_of_the_cache(config: EngineConfig) -> None:
    async def alone(client: EngineClient) -> tuple[int, int, int]:
        private = RequestOptions(prefix_cache=False)
        _, first = await ask(client, private)
        _, second = await ask(client)
        _, third = await ask(client, private)
        return first, second, third

    assert with_client(config, alone) == (0, 0, 0)


def test_the_next_turn_of_a_conversation_begins_where_the_last_one_ended(config: EngineConfig) -> None:
    async def two_turns(client: EngineClient) -> int:
        tokens, _ = await ask(client, prompt=PROMPT[:100])
        _, num_cached = await ask(client, prompt=[*PROMPT[:100], *tokens, 1, 2, 3, 4, 5, 6, 7, 8, 9])
        return num_cached

    assert with_client(config, two_turns) == 96


def test_sec_32_files_are_their_owners_alone(config: EngineConfig) -> None:
    assert config.prefix_cache_dir is not None
    folder = config.prefix_cache_dir

    async def fill(client: EngineClient) -> None:
        await ask(client)
        await blocks_on_disk(folder, 125)

    with_client(config, fill)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
