"""Adapters that come and go while a real model answers: the same tokens as in a library that began with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
from support.peft_folder import factors, write_peft

from qwenstack.core.messages import Message
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM, EngineConfig
from qwenstack.engine.client import EngineClient
from qwenstack.serving import ServeConfig, admin_config, create_admin_app, create_app
from qwenstack.storage import open_database

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]

KEY = "qsa-the-key-of-the-file-on-this-machine"
QUESTION = "Tell me a short story about a fox."
WIDTH = 576
"""Of SmolLM2-135M."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good adapter and some that cannot be used."""
    root = tmp_path / "adapters"
    good = factors("3.self_attn.q_proj", WIDTH, WIDTH, rank=2, seed=1)
    write_peft(root / "good", good, lora_alpha=8)
    write_peft(root / "other", factors("5.self_attn.o_proj", WIDTH, WIDTH, rank=2, seed=2), lora_alpha=8)
    write_peft(root / "narrow", factors("3.self_attn.q_proj", 64, 64))
    write_peft(root / "deep", factors("99.self_attn.q_proj", WIDTH, WIDTH))
    write_peft(root / "cut", good)
    weights = root / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    write_peft(root / "pickled", good)
    (root / "pickled" / "adapter_model.safetensors").rename(root / "pickled" / "adapter_model.bin")
    write_peft(root / "dora", good, use_dora=True)
    (root / "empty").mkdir()
    write_peft(root / "not-json", good)
    (root / "not-json" / "adapter_config.json").write_text("[" * 10_000)
    return root


@contextlib.asynccontextmanager
async def serving(
    model: Path, root: Path, folder: Path
) -> AsyncGenerator[tuple[EngineClient, httpx.AsyncClient, httpx.AsyncClient]]:
    client = await EngineClient.start(EngineConfig(model_path=model, model_name="small", max_model_len=1024))
    config = ServeConfig(adapters_folder=root, admin_keys=(KEY,))
    app = create_app(client, config, database=open_database(f"sqlite:///{folder / 'q.db'}"))
    inside = create_admin_app(app, admin_config(config, host="127.0.0.1", port=8001))
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        async with (
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", timeout=60) as public,
            httpx.AsyncClient(
                transport=httpx.ASGITransport(inside), base_url="http://127.0.0.1", headers=headers, timeout=60
            ) as admin,
        ):
            yield client, public, admin
    finally:
        await client.close()


async def ask(public: httpx.AsyncClient, model: str, max_tokens: int = 16) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    answer = await public.post("/v1/chat/completions", json=body | {"max_tokens": max_tokens, "ignore_eos": True})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def expected(model: Path, adapter: Path | None, max_tokens: int = 16) -> str:
    """What the library gives, which began with the adapter."""
    adapters = () if adapter is None else (f"a={adapter}",)
    options = RequestOptions(adapter=None if adapter is None else "a")
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    llm = LLM(model, max_model_len=1024, adapters=adapters)
    (output,) = llm.chat([Message(role="user", content=QUESTION)], params, options=options)
    return output.outputs[0].text


@pytest.mark.anyio
async def test_c18_adapters_come_and_go_under_running_requests_and_bad_ones_change_nothing(
    smollm2_gguf: Path, root: Path, tmp_path: Path
) -> None:
    plain = await asyncio.to_thread(expected, smollm2_gguf, None)
    tuned = await asyncio.to_thread(expected, smollm2_gguf, root / "good", 160)
    assert not tuned.startswith(plain)
    async with serving(smollm2_gguf, root, tmp_path) as (client, public, admin):
        pid = client.pid
        loaded = await admin.post("/admin/v1/adapters", json={"name": "tuned", "path": "good"})
        assert loaded.status_code == 200, loaded.text
        long = asyncio.create_task(ask(public, "tuned", 160))
        while (await admin.get("/admin/v1/adapters")).json()["data"][0]["num_sequences"] == 0:
            await asyncio.sleep(0.01)
        for bad in ("narrow", "deep", "cut", "pickled", "dora", "empty", "not-json"):
            for name, replace in (("bad", False), ("tuned", True)):
                body = {"name": name, "path": bad, "replace": replace}
                answer = await admin.post("/admin/v1/adapters", json=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_adapter"), bad
        (adapter,) = (await admin.get("/admin/v1/adapters")).json()["data"]
        assert (adapter["name"], adapter["digest"]) == ("tuned", loaded.json()["digest"])
        replaced = await admin.post("/admin/v1/adapters", json={"name": "tuned", "path": "other", "replace": True})
        assert replaced.json()["digest"] != loaded.json()["digest"]
        assert (await admin.delete("/admin/v1/adapters/tuned")).status_code == 200
        assert (await public.post("/v1/completions", json={"model": "tuned", "prompt": "x"})).status_code == 404
        assert await ask(public, "small") == plain
        assert await long == tuned  # it ended with the adapter that it began with
        assert client.pid == pid


@pytest.mark.anyio
async def test_an_engine_that_died_has_its_adapters_again(smollm2_gguf: Path, root: Path, tmp_path: Path) -> None:
    async with serving(smollm2_gguf, root, tmp_path) as (client, public, admin):
        for name, path in (("a", "good"), ("b", "other"), ("gone", "good")):
            assert (await admin.post("/admin/v1/adapters", json={"name": name, "path": path})).status_code == 200
        assert (await admin.delete("/admin/v1/adapters/gone")).status_code == 200
        before = (await admin.get("/admin/v1/adapters")).json()
        texts = [await ask(public, name) for name in ("a", "b")]
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while (await public.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.01)
            while (await public.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.1)
        assert (await admin.get("/admin/v1/adapters")).json() == before
        assert [await ask(public, name) for name in ("a", "b")] == texts
