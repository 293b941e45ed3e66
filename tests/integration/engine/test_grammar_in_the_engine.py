"""Grammars inside the loop, on a tiny model of single bytes: several answers, thinking, refusals, neighbours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from support.engine_runs import collect
from support.tiny_gguf import CONTROL, QWEN3_Q8, WORDS, write_tiny_gguf

from qwenstack.core.grammar import Grammar
from qwenstack.core.outputs import CompletionOutput
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.building import build_engine
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.engine import Engine

THINK_OPEN = 257 + len(CONTROL) + WORDS.index("<think>")
CHOICES = Grammar(kind="choice", source='["north", "south", "east", "west"]')
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path: Path = write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", QWEN3_Q8)
    return build_engine(
        EngineConfig(model_path=path, model_name="tiny", num_threads=1, max_model_len=512, prefix_cache_disk_bytes=0)
    )


def run(engine: Engine) -> dict[tuple[str, int], CompletionOutput]:
    answers: dict[tuple[str, int], CompletionOutput] = {}
    while engine.has_work:
        collect(engine.step(), answers)
    return answers


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 5])
def test_every_answer_fits_and_no_two_share_a_place_in_the_grammar(
    engine: Engine, temperature: float, top_k: int
) -> None:
    words = Grammar(kind="regex", source="[a-z]{9}")
    params = SamplingParams(temperature=temperature, top_k=top_k, seed=4, max_tokens=30, n=4, grammar=words)
    engine.add_request("a", [1, 2, 3], params)
    texts = [answer.text for answer in run(engine).values()]
    assert len(texts) == 4
    assert all(re.fullmatch("[a-z]{9}", text) for text in texts)
    if temperature:
        assert len(set(texts)) > 1


def test_answers_under_a_schema_validate_whatever_runs_beside_them(engine: Engine) -> None:
    grammar = Grammar(kind="json_schema", source=json.dumps(SCHEMA))
    bound = SamplingParams(temperature=1.0, seed=1, max_tokens=200, grammar=grammar)
    engine.add_request("alone", [5] * 40, bound)
    alone = run(engine)["alone", 0]
    jsonschema.validate(json.loads(alone.text), SCHEMA)
    engine.add_request("other", [9], SamplingParams(max_tokens=50, ignore_eos=True))
    engine.add_request("again", [5] * 40, bound)
    engine.add_request("python", [7], SamplingParams(max_tokens=20, grammar=Grammar(kind="python")))
    assert run(engine)["again", 0].token_ids == alone.token_ids


def test_a_grammar_that_cannot_be_used_ends_its_own_request_alone(engine: Engine) -> None:
    engine.add_request("bad", [1], SamplingParams(max_tokens=5, n=2, grammar=Grammar(kind="regex", source="(((")))
    engine.add_request("good", [2], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    ends: dict[tuple[str, int], tuple[str | None, str | None]] = {}
    while engine.has_work:
        for delta in engine.step():
            if delta.finish_reason is not None:
                ends[delta.request_id, delta.index] = (delta.finish_reason, delta.error_code)
    assert ends == {
        ("bad", 0): ("error", "invalid_grammar"),
        ("bad", 1): ("error", "invalid_grammar"),
        ("good", 0): ("length", None),
    }


def test_one_that_leaves_while_its_grammar_is_compiled_leaves_nothing_behind(engine: Engine) -> None:
    grammar = Grammar(kind="regex", source="[abc]{3,9}z")
    engine.add_request("leaver", [1], SamplingParams(max_tokens=5, n=3, grammar=grammar))
    assert engine.abort("leaver")
    assert not engine.has_work
    engine.add_request("next", [1], SamplingParams(max_tokens=12, grammar=CHOICES))
    assert run(engine)["next", 0].text in {"north", "south", "east", "west"}


def test_a_spent_thinking_budget_and_a_grammar_go_together(engine: Engine) -> None:
    """The closing sentence has blank lines behind its mark, which no choice begins with."""
    params = SamplingParams(temperature=0, max_tokens=300, grammar=CHOICES, thinking_budget=3, output_format="thinking")
    engine.add_request("a", [1, 2, THINK_OPEN], params)
    answer = run(engine)["a", 0]
    assert answer.finish_reason == "stop"
    assert answer.text.strip() in {"north", "south", "east", "west"}
    assert "limited time" in answer.reasoning_text
