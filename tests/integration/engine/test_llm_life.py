"""An `LLM` from its loading to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack import LLM, SamplingParams
from qwenstack.core.errors import ConfigError, EngineError

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


def test_without_the_prefix_cache_nothing_is_shared(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8)
    folder = tmp_path / "prefix"
    with LLM(path, num_threads=1, prefix_cache_dir=folder, enable_prefix_caching=False) as llm:
        outputs = [llm.generate(PROMPT, PARAMS)[0] for _ in range(2)]
        assert [output.num_cached_tokens for output in outputs] == [0, 0]
        assert llm.stats().prefix_cache_hits == 0
    assert not folder.exists()


REPEATING = {"prompt_token_ids": [5, 6, 7, 8] * 20}
LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


def test_guesses_change_no_result_and_hold_as_many_tokens_as_they_may(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8)
    results = []
    for options in (
        {"speculation": "off"},
        {"speculative_config": {"method": "ngram"}},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 1}},
        {"speculative_config": {"model": path}},
    ):
        with LLM(path, num_threads=1, prefix_cache_disk_bytes=0, **options) as llm:
            (output,) = llm.generate(REPEATING, LONG)
            stats = llm.stats()
            results.append((output.outputs[0].token_ids, stats.num_draft_tokens, stats.num_steps))
    assert all(tokens == results[0][0] for tokens, _, _ in results)
    assert results[0][1] == 0
    assert results[1][1] > 0
    assert results[2][1] <= results[2][2]


def test_guessers_named_twice_are_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8)
    with pytest.raises(ConfigError, match="give one"):
        LLM(path, num_threads=1, speculation="off", speculative_config={"method": "ngram"})


@pytest.mark.parametrize(
    "config",
    [
        {"method": "draft_model"},
        {"method": "ngram", "model": "smollm2-135m"},
        {"method": "eagle"},
        {"num_speculative_tokens": 0},
        {"num_speculative_tokens": 17},
        {"tokens": 4},
    ],
)
def test_what_no_guesser_can_do_is_refused(tmp_path: Path, config: Any) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8)
    with pytest.raises(ConfigError, match="speculative"):
        LLM(path, num_threads=1, prefix_cache_disk_bytes=0, speculative_config=config)
