"""An `LLM` from its loading to its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack import LLM, SamplingParams
from qwenstack.core.errors import EngineError

PROMPT = {"prompt_token_ids": list(range(100))}
PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def test_what_one_wrote_the_next_one_finds(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8)
    results = []
    for _ in range(2):
        with LLM(path, num_threads=1, prefix_cache_dir=tmp_path / "prefix") as llm:
            (output,) = llm.generate(PROMPT, PARAMS)
            results.append((output.num_cached_tokens, output.outputs[0].token_ids))
    assert [num_cached for num_cached, _ in results] == [0, 96]
    assert results[0][1] == results[1][1]


def test_a_closed_one_says_so(tmp_path: Path) -> None:
    llm = LLM(write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8), num_threads=1, prefix_cache_disk_bytes=0)
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate(PROMPT, PARAMS)
