"""A checkpoint is numbers and text: programs that lie in its folder are never run, whatever its files ask for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.embedding_checkpoint import save_embedding_checkpoint

from qwenstack.core.errors import ConfigError, ModelFormatError
from qwenstack.core.grammar import Grammar
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM, EngineConfig
from qwenstack.engine.client import EngineClient
from qwenstack.retrieval import decoder_embedder

CANARY = "it-was-run"
PROGRAM = f"import pathlib\npathlib.Path(__file__).with_name({CANARY!r}).touch()\n"
PROGRAMS = (
    "modeling_evil.py",
    "configuration_evil.py",
    "tokenization_evil.py",
    # What Python would find first, were the folder a place to import from.
    "sitecustomize.py",
    "qwenstack.py",
    "msgspec.py",
    "numpy.py",
    "llguidance.py",
)
DEMANDS = {
    "architectures": ["EvilForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_evil.EvilConfig",
        "AutoModel": "modeling_evil.EvilModel",
        "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
        "AutoTokenizer": ["tokenization_evil.EvilTokenizer", None],
    },
    "trust_remote_code": True,
}
ONE_OF_TWO = SamplingParams(temperature=0.0, max_tokens=8, grammar=Grammar(kind="regex", source="(cat|mat)"))
PROMPT = "The cat sat"


def demand(folder: Path, name: str, **changes: Any) -> None:
    """Put what a hostile author would write into one of a checkpoint's JSON files."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | DEMANDS | changes))


def save_hostile(folder: Path) -> Path:
    save_embedding_checkpoint(folder)
    for name in PROGRAMS:
        (folder / name).write_text(PROGRAM)
    demand(folder, "config.json")
    demand(folder, "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    return folder


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return save_embedding_checkpoint(tmp_path / "clean")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same checkpoint with programs beside it, opened by somebody who stands in its folder."""
    folder = save_hostile(tmp_path / "hostile")
    monkeypatch.chdir(folder)
    return folder


def was_run(folder: Path) -> bool:
    return (folder / CANARY).exists()


def test_the_programs_tell_when_they_are_run(hostile: Path) -> None:
    exec(compile(PROGRAM, hostile / PROGRAMS[0], "exec"), {"__file__": str(hostile / PROGRAMS[0])})
    assert was_run(hostile)


def test_sec_26_a_known_model_is_computed_as_what_it_is(clean: Path, hostile: Path) -> None:
    def tokens(folder: Path) -> list[Any]:
        with LLM(folder, num_threads=1, max_model_len=256, prefix_cache_disk_bytes=0) as llm:
            params = [SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True), ONE_OF_TWO]
            return [list(llm.generate([PROMPT], each)[0].outputs[0].token_ids) for each in params]

    assert tokens(hostile) == tokens(clean)
    assert not was_run(hostile)


def test_sec_26_the_engines_processes_run_none_of_it(hostile: Path) -> None:
    async def answer() -> str:
        config = EngineConfig(
            model_path=hostile, model_name="m", num_threads=1, max_model_len=256, prefix_cache_disk_bytes=0
        )
        client = await EngineClient.start(config)
        try:
            ids = await client.encode(PROMPT)
            return "".join([delta.text async for delta in client.generate(ids, ONE_OF_TWO, request_id="r")])
        finally:
            await client.close()

    assert asyncio.run(asyncio.wait_for(answer(), 120)) in {"cat", "mat"}
    assert not was_run(hostile)


def test_sec_26_the_process_that_makes_vectors_runs_none_of_it(clean: Path, hostile: Path) -> None:
    async def vector(folder: Path) -> list[float]:
        embedder = decoder_embedder(folder, "m", num_threads=1, max_tokens=64)
        try:
            (found,) = await embedder.embed(await embedder.prepare([PROMPT]))
            return list(found)
        finally:
            await embedder.close()

    assert asyncio.run(vector(hostile)) == asyncio.run(vector(clean))
    assert not was_run(hostile)


@pytest.mark.parametrize("model_type", ["evil", "../modeling_evil", "modeling_evil.EvilModel"])
def test_sec_26_a_model_of_an_unknown_kind_is_refused_with_those_that_are_known(hostile: Path, model_type: str) -> None:
    demand(hostile, "config.json", model_type=model_type)
    with pytest.raises(ModelFormatError, match=r"knows qwen2, qwen3, qwen3_moe, llama") as error:
        LLM(hostile)
    assert repr(model_type) in str(error.value)
    assert not was_run(hostile)


def test_sec_26_nobody_can_ask_for_it(hostile: Path) -> None:
    with pytest.raises(ConfigError, match="LLM has no option 'trust_remote_code'"):
        LLM(hostile, trust_remote_code=True)  # type: ignore[call-arg]
    assert not was_run(hostile)
