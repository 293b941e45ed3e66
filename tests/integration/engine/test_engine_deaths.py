"""The engine process dies, on a toy model: who is suspected, who goes on, what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.toy import ToyTokenizer
from support.toy_worker import FAILS, FATAL_STEP_S, LOSES_A_BLOCK, POISON

from qwenstack.core.errors import EngineError, RequestError
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import EngineConfig
from qwenstack.engine import client as client_module
from qwenstack.engine.client import EngineClient
from qwenstack.engine.quarantine import request_digest
from qwenstack.engine.wire import Submit
from qwenstack.logs import LogConfig

LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


@pytest.fixture
def with_client(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a coroutine with a client whose engine process has the toy model."""
    monkeypatch.setattr(client_module, "_WORKER_MODULE", "support.toy_worker")
    monkeypatch.setattr(client_module, "_read_text_side", lambda _: (ToyTokenizer(), {}))

    def run(body: Callable[[EngineClient], Awaitable[Any]], *, logs: LogConfig = LogConfig(), **options: Any) -> Any:
        async def whole() -> Any:
            config = EngineConfig(model_path=Path("toy"), model_name="toy", **options)
            client = await EngineClient.start(config, logs=logs)
            try:
                return await asyncio.wait_for(body(client), 120)
            finally:
                await client.close()

        return asyncio.run(whole())

    return run


async def answer(client: EngineClient, prompt: list[int], request_id: str, params: SamplingParams = SHORT) -> list[int]:
    deltas = client.generate(prompt, params, request_id=request_id)
    return [token async for delta in deltas for token in delta.token_ids]


async def dies(client: EngineClient, prompt: list[int], request_id: str) -> None:
    with pytest.raises(EngineError):
        await answer(client, prompt, request_id)
    await is_back(client)


async def is_back(client: EngineClient) -> None:
    for _ in range(600):
        try:
            await client.stats()
            return
        except EngineError:
            await asyncio.sleep(0.05)
    raise AssertionError("the engine did not come back")


async def begun(client: EngineClient, prompt: list[int], request_id: str) -> AsyncGenerator[Any]:
    """Return a stream whose first token has come."""
    stream = client.generate(prompt, LONG, request_id=request_id)
    await anext(stream)
    return stream


def test_sec_07_a_request_that_ends_the_engine_twice_is_not_run_a_third_time(with_client: Callable[..., Any]) -> None:
    async def body(client: EngineClient) -> None:
        await dies(client, [POISON, 1], "first")
        await dies(client, [POISON, 1], "second")
        pid = client.pid
        with pytest.raises(RequestError, match="died 2 times") as refused:
            await answer(client, [POISON, 1], "third")
        assert refused.value.code == "quarantined"
        assert client.pid == pid
        assert len(await answer(client, [1, POISON], "another")) == 5

    with_client(body)


def test_sec_07_who_was_in_the_fatal_step_is_cleared_by_its_answer(with_client: Callable[..., Any]) -> None:
    async def body(client: EngineClient) -> None:
        for attempt in range(2):
            bystander = await begun(client, [2, 3], "bystander")
            await dies(client, [POISON], f"poison-{attempt}")
            with pytest.raises(EngineError):
                _ = [delta async for delta in bystander]
            assert len(await answer(client, [2, 3], "bystander", LONG)) == 100
        with pytest.raises(RequestError):
            await answer(client, [POISON], "poison-3")
        assert len(await answer(client, [2, 3], "bystander", LONG)) == 100

    with_client(body)


def test_sec_07_who_only_waited_is_no_suspect(with_client: Callable[..., Any]) -> None:
    async def body(client: EngineClient) -> None:
        poison = asyncio.create_task(dies(client, [POISON], "poison"))
        await asyncio.sleep(0)
        with pytest.raises(EngineError):
            await answer(client, [4], "waiting")
        await poison
        assert set(client._quarantine._suspicions) == {request_digest(Submit("poison", [POISON], SHORT))}

    with_client(body, max_num_seqs=1)


def test_sec_07_a_reader_who_left_before_the_death_does_not_hide_the_request(with_client: Callable[..., Any]) -> None:
    async def body(client: EngineClient) -> None:
        for attempt in range(2):
            stream = client.generate([POISON], SHORT, request_id=f"poison-{attempt}")
            pid = client.pid
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), FATAL_STEP_S / 2)
            while client.pid == pid:
                await asyncio.sleep(0.02)
            await is_back(client)
        with pytest.raises(RequestError):
            await answer(client, [POISON], "poison-3")

    with_client(body)


def test_an_engine_whose_books_do_not_agree_is_replaced(
    with_client: Callable[..., Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(client: EngineClient) -> None:
        pid = client.pid
        assert len(await answer(client, [LOSES_A_BLOCK], "damaging")) == 5
        while client.pid == pid:
            await asyncio.sleep(0.02)
        await is_back(client)
        assert len(await answer(client, [LOSES_A_BLOCK + 1], "after")) == 5

    with_client(body)
    said = capfd.readouterr().err
    assert "The engine is damaged and stops" in said
    assert "Traceback" not in said
    assert "exit status 70" in caplog.text


def test_the_engine_logs_as_the_server_does_and_names_the_request_of_a_failure(
    with_client: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def body(client: EngineClient) -> None:
        with pytest.raises(EngineError, match="cannot be computed"):
            await answer(client, [FAILS], "chatcmpl-1")
        assert len(await answer(client, [4], "after")) == 5

    with_client(body, logs=LogConfig(format="json"))
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert line["engine_request_id"] == "chatcmpl-1"
    assert (line["level"], line["logger"]) == ("error", "qwenstack.engine.engine")
    assert "ArithmeticError" in line["exception"]
    assert "toy_worker.py" in line["exception"]


def test_adapters_are_loaded_listed_and_there_again_after_a_death(with_client: Callable[..., Any]) -> None:
    async def body(client: EngineClient) -> None:
        await client.load_adapter("law", Path("/adapters/law"))
        await client.load_adapter("poems", Path("/adapters/poems"))
        with pytest.raises(RequestError, match="already"):
            await client.load_adapter("law", Path("/adapters/other"))
        with pytest.raises(RequestError) as refused:
            await client.unload_adapter("tax")
        assert refused.value.code == "adapter_not_found"
        assert [adapter.name for adapter in await client.unload_adapter("poems")] == ["law"]
        await dies(client, [POISON], "poison")
        (adapter,) = await client.list_adapters()
        assert (adapter.name, adapter.digest) == ("law", "/adapters/law")

    with_client(body)
