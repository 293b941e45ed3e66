"""The engine process behind its socket: same tokens as in this process, cancelled requests gone, deaths survived."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from qwenstack.core.errors import EngineError, ModelFormatError, RequestError
from qwenstack.core.messages import Message
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM, EngineConfig
from qwenstack.engine.client import EngineClient

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]

QUESTION = [Message(role="user", content="Tell me a short story about a fox.")]


def with_client(path: Path, body: Callable[[EngineClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        client = await EngineClient.start(EngineConfig(model_path=path, model_name="small", max_model_len=1024))
        try:
            return await asyncio.wait_for(body(client), 120)
        finally:
            await client.close()

    return asyncio.run(run())


async def answer(client: EngineClient, params: SamplingParams, request_id: str) -> str:
    ids = await client.encode_chat(QUESTION)
    return "".join([delta.text async for delta in client.generate(ids, params, request_id=request_id)])


def test_the_process_gives_the_tokens_of_the_library(smollm2_gguf: Path) -> None:
    params = SamplingParams(temperature=0.8, seed=11, max_tokens=24)

    async def body(client: EngineClient) -> list[str]:
        return await asyncio.gather(*(answer(client, params, str(number)) for number in range(3)))

    texts = with_client(smollm2_gguf, body)
    (alone,) = LLM(smollm2_gguf, max_model_len=1024).chat(QUESTION, params)
    assert texts == [alone.outputs[0].text] * 3


def test_a_reader_who_leaves_frees_the_blocks(smollm2_gguf: Path) -> None:
    async def body(client: EngineClient) -> None:
        ids = await client.encode_chat(QUESTION)
        stream: AsyncGenerator[Any] = client.generate(
            ids, SamplingParams(max_tokens=900, ignore_eos=True), request_id="leaver"
        )
        async for _ in stream:
            break
        assert (await client.stats()).num_blocks_free < (await client.stats()).num_blocks_total
        await stream.aclose()
        stats = await client.stats()
        assert stats.num_blocks_free == stats.num_blocks_total
        assert stats.num_requests_running == 0

    with_client(smollm2_gguf, body)


def test_prompts_are_read_while_every_thread_of_the_loop_waits_for_something_else(smollm2_gguf: Path) -> None:
    """A locked database, for instance."""

    async def body(client: EngineClient) -> None:
        unlocked = threading.Event()
        waiting = [asyncio.create_task(asyncio.to_thread(unlocked.wait, 60)) for _ in range(64)]
        await asyncio.sleep(0)
        try:
            assert await client.encode_chat(QUESTION)
            assert await client.encode("text")
            assert not any(task.done() for task in waiting)
        finally:
            unlocked.set()
            await asyncio.gather(*waiting)

    with_client(smollm2_gguf, body)


def test_errors_cross_the_socket_as_themselves(smollm2_gguf: Path) -> None:
    async def body(client: EngineClient) -> None:
        with pytest.raises(RequestError) as refused:
            async for _ in client.generate([1] * 2000, SamplingParams(), request_id="long"):
                pass
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(RequestError):
            await client.encode("lone \ud800 surrogate")
        assert await answer(client, SamplingParams(temperature=0, max_tokens=2), "after")

    with_client(smollm2_gguf, body)


async def read_and_kill(client: EngineClient, ids: list[int]) -> None:
    async for _ in client.generate(ids, SamplingParams(max_tokens=900, ignore_eos=True), request_id="unlucky"):
        if client.pid is not None:
            os.kill(client.pid, signal.SIGKILL)


def test_a_killed_engine_fails_its_requests_and_comes_back(smollm2_gguf: Path) -> None:
    async def body(client: EngineClient) -> None:
        ids = await client.encode_chat(QUESTION)
        with pytest.raises(EngineError):
            await read_and_kill(client, ids)
        for _ in range(300):
            try:
                await client.stats()
                break
            except EngineError:
                await asyncio.sleep(0.1)
        assert await answer(client, SamplingParams(temperature=0, max_tokens=4), "lucky")

    with_client(smollm2_gguf, body)


def test_a_damaged_file_is_an_error_of_the_file(tmp_path: Path, smollm2_gguf: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(smollm2_gguf.read_bytes()[: 1 << 20])

    async def start() -> None:
        await EngineClient.start(EngineConfig(model_path=damaged, model_name="damaged"))

    with pytest.raises(ModelFormatError, match=r"damaged\.gguf"):
        asyncio.run(start())
