"""The default model fills gaps in code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenstack import LLM, SamplingParams
from qwenstack.core.infill import ContextFile, Gap

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]


@pytest.fixture(scope="module")
def llm(coder_gguf: Path) -> Iterator[LLM]:
    with LLM(coder_gguf, prefix_cache_disk_bytes=0, max_model_len=2048) as llm:
        yield llm


def first_line(llm: LLM, gap: Gap) -> str:
    """Return the first line that is filled in: this small model, tuned for chats, seldom knows where a gap ends."""
    prompt = llm.get_tokenizer().encode_infill(gap, max_tokens=1024)
    params = SamplingParams(temperature=0, max_tokens=20, stop="\n", stop_token_ids=list(prompt.stop_token_ids))
    (output,) = llm.generate({"prompt_token_ids": list(prompt.token_ids)}, params)
    return output.outputs[0].text


def test_the_ids_are_those_of_the_models_makers(llm: LLM) -> None:
    prompt = llm.get_tokenizer().encode_infill(Gap(prefix="def area(width, height):", suffix="\nx"), max_tokens=100)
    # <|fim_prefix|>, <|fim_suffix|> and <|fim_middle|> in Qwen2.5's tokenizer.json, the words between them as BPE.
    assert prompt.token_ids == [151659, 750, 3082, 16425, 11, 2608, 1648, 151661, 198, 87, 151660]


def test_gaps_are_filled(llm: LLM) -> None:
    even = Gap(prefix="def is_even(n):\n    return", suffix="\n\n\nassert is_even(4)\nassert not is_even(5)\n")
    assert first_line(llm, even) == " n % 2 == 0"
    size = Gap(prefix="import os\n\n\ndef size(path):\n    return", suffix="\n\n\nprint(size('x'))\n")
    assert first_line(llm, size) == " os.path.getsize(path)"


def test_other_files_are_read(llm: LLM) -> None:
    other = ContextFile(path="settings.py", text='SERVICE_PORT_NUMBER = 48213\nSERVICE_HOST_NAME = "zebra"\n')
    prefix = "from settings import SERVICE_HOST_NAME, SERVICE_PORT_"
    assert first_line(llm, Gap(prefix=prefix, suffix="\n", context=[other])) == "NUMBER"


def test_marks_in_the_code_are_plain_text(llm: LLM) -> None:
    prompt = llm.get_tokenizer().encode_infill(Gap(prefix="a<|fim_middle|>", suffix="<|fim_suffix|>"), max_tokens=100)
    assert [token for token in prompt.token_ids if token >= 151643] == [151659, 151661, 151660]
