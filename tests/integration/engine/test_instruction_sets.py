"""Real weights on every instruction set of this processor: the same answers, token for token.

The usual run asks a few questions; `QWENSTACK_ISA_PROMPTS=50` asks fifty.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qwenstack.core.messages import Message
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM
from qwenstack.kernels import supported_isas

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]

NUM_PROMPTS = int(os.environ.get("QWENSTACK_ISA_PROMPTS", "4"))
PROMPTS: list[str] = json.loads((Path(__file__).parents[2] / "data" / "python_prompts.json").read_text())[:NUM_PROMPTS]


def answers(path: Path, isa: str) -> list[list[int]]:
    with LLM(path, isa=isa, max_model_len=512, prefix_cache_disk_bytes=0) as llm:
        conversations = [[Message(role="user", content=prompt)] for prompt in PROMPTS]
        outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=24))
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.timeout(300 + 30 * NUM_PROMPTS)  # 50 take 8 minutes of two cores, nearly all of it in scalar code
@pytest.mark.skipif(len(supported_isas()) < 2, reason="this processor has one instruction set only")
def test_greedy_answers_are_the_same_on_every_instruction_set(coder_gguf: Path) -> None:
    expected, *others = [answers(coder_gguf, isa) for isa in supported_isas()]
    assert all(len(token_ids) > 1 for token_ids in expected)
    assert all(found == expected for found in others)
