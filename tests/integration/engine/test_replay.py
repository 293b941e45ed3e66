"""A journal of the real engine process, with a death in it, run again by the command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from qwenstack.cli.app import main
from qwenstack.core.errors import EngineError
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import EngineConfig
from qwenstack.engine.client import EngineClient

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]

PARAMS = SamplingParams(temperature=0.9, max_tokens=8, ignore_eos=True)


async def answer(client: EngineClient, text: str, request_id: str, *, leave_after: int | None = None) -> None:
    ids = await client.encode(text)
    async with contextlib.aclosing(client.generate(ids, PARAMS, request_id=request_id)) as deltas:
        number = 0
        async for _ in deltas:
            number += 1
            if number == leave_after:
                return


async def kill_while_it_answers(client: EngineClient) -> None:
    ids = await client.encode("Once more")
    params = SamplingParams(max_tokens=300, ignore_eos=True)
    async for _ in client.generate(ids, params, request_id="unlucky"):
        if client.pid is not None:
            os.kill(client.pid, signal.SIGKILL)


async def die(client: EngineClient) -> None:
    with pytest.raises(EngineError):
        await kill_while_it_answers(client)
    for _ in range(600):
        with contextlib.suppress(EngineError):
            await client.stats()
            return
        await asyncio.sleep(0.1)


async def live(path: Path, journal: Path) -> None:
    config = EngineConfig(model_path=path, model_name="small", max_model_len=512, journal_path=journal)
    client = await EngineClient.start(config)
    try:
        await asyncio.gather(
            answer(client, "The capital of France", "a"),
            answer(client, "Foxes are", "b"),
            answer(client, "One, two", "c", leave_after=3),
        )
        await die(client)
        await answer(client, "The capital of France", "a")
    finally:
        await client.close()


def test_unseeded_answers_come_out_again_and_a_death_is_seen(
    tmp_path: Path, smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "journal"
    asyncio.run(live(smollm2_gguf, journal))
    capsys.readouterr()
    assert main(["replay", str(journal), str(smollm2_gguf), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["num_equal"], first["num_aborted"], first["num_lost"], first["differences"]) == (2, 1, 1, [])
    assert (second["num_equal"], second["num_lost"], second["differences"]) == (1, 0, [])
