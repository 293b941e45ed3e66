"""Real weights under grammars: answers validate or parse, and the same answer comes with neighbours as without.

The usual run asks a few questions; `QWENSTACK_STRUCTURED_PROMPTS=100` asks all of `tests/data/python_prompts.json` and
as many schemas.
"""

import ast
import json
import os
import random
import re
import warnings
from pathlib import Path

import jsonschema
import pytest
from support.random_schemas import random_schema

from qwenstack.core.grammar import Grammar
from qwenstack.core.messages import Message
from qwenstack.core.outputs import RequestOutput
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]

NUM_PROMPTS = int(os.environ.get("QWENSTACK_STRUCTURED_PROMPTS", "10"))
PROMPTS: list[str] = json.loads((Path(__file__).parents[2] / "data" / "python_prompts.json").read_text())
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "maxLength": 20}},
                    "required": ["city"],
                    "additionalProperties": False,
                },
            },
        }
    ]
)


@pytest.fixture(scope="module")
def llm(coder_gguf: Path) -> LLM:
    return LLM(coder_gguf, max_model_len=2048)


def ask(llm: LLM, prompts: list[str], grammars: list[Grammar], *, max_tokens: int) -> list[RequestOutput]:
    conversations = [[Message(role="user", content=prompt)] for prompt in prompts]
    params = [SamplingParams(temperature=0, max_tokens=max_tokens, grammar=grammar) for grammar in grammars]
    return llm.chat(conversations, params)


def finished_texts(outputs: list[RequestOutput]) -> list[tuple[int, str]]:
    answers = [(number, output.outputs[0]) for number, output in enumerate(outputs)]
    return [(number, answer.text) for number, answer in answers if answer.finish_reason == "stop"]


def test_every_finished_program_parses(llm: LLM):
    prompts = PROMPTS[:NUM_PROMPTS]
    outputs = ask(llm, prompts, [Grammar(kind="python")] * len(prompts), max_tokens=400)
    finished = finished_texts(outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _, text in finished:
            ast.parse(text)
    # Of the first 40 programs 25 end within 400 tokens; most others begin with prose that the grammar bends.
    assert len(finished) >= 0.5 * len(prompts)


def test_every_finished_object_validates(llm: LLM):
    rng = random.Random(21)
    schemas = [random_schema(rng) for _ in range(NUM_PROMPTS)]
    grammars = [Grammar(kind="json_schema", source=json.dumps(schema)) for schema in schemas]
    outputs = ask(llm, ["Make up an example as JSON."] * len(schemas), grammars, max_tokens=200)
    finished = finished_texts(outputs)
    assert len(finished) >= 0.5 * len(schemas)
    for number, text in finished:
        jsonschema.validate(json.loads(text), schemas[number])


def test_patterns_choices_and_calls(llm: LLM):
    grammars = [
        Grammar(kind="regex", source=r"\d{4}-\d{2}-\d{2}"),
        Grammar(kind="choice", source='["positive", "negative"]'),
        Grammar(kind="tools", source=TOOLS, required_tool="*"),
    ]
    prompts = ["When was Ada Lovelace born?", "Is 'I love it' positive or negative?", "What is the weather in Paris?"]
    texts = dict(finished_texts(ask(llm, prompts, grammars, max_tokens=100)))
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", texts[0])
    assert texts[1] in {"positive", "negative"}
    call = re.fullmatch(r"<tool_call>\n?(.*?)\n?</tool_call>(\n<tool_call>.*)?", texts[2], re.DOTALL)
    assert call is not None
    assert json.loads(call[1])["name"] == "get_weather"


def test_a_constrained_answer_does_not_depend_on_its_neighbours(llm: LLM):
    grammar = Grammar(kind="python")
    alone = [ask(llm, [prompt], [grammar], max_tokens=60)[0].outputs[0].text for prompt in PROMPTS[:3]]
    together = [output.outputs[0].text for output in ask(llm, PROMPTS[:3], [grammar] * 3, max_tokens=60)]
    assert together == alone
