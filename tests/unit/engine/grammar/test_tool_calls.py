"""Calls of tools: free text, and between the markers nothing but a call whose arguments fit."""

import json
import random
import re

import jsonschema
import pytest
from support.grammar_walks import accepts, constraint_of, vocabulary_of, walk

from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.lark_source import lark_of
from qwenstack.engine.grammar.refusal import GrammarRefusal
from qwenstack.engine.grammar.token_table import TokenTable

WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "maxLength": 6}},
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS = {"get_weather": WEATHER, "now": {"type": "object", "maxProperties": 0}}


def tools_grammar(required_tool: str | None = None, tools: object = TOOLS, **options: bool) -> Grammar:
    return Grammar(kind="tools", source=json.dumps(tools), required_tool=required_tool, **options)


def call(name: str, arguments: object) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def check_calls(text: str) -> int:
    calls = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    assert text.count("<tool_call>") == len(calls)
    for body in calls:
        one = json.loads(body)
        assert list(one) == ["name", "arguments"]
        jsonschema.validate(one["arguments"], SCHEMAS[one["name"]])
    return len(calls)


def test_text_is_free_and_calls_are_not():
    constraint = constraint_of(tools_grammar())
    assert accepts(constraint, "Just text, 1 < 2, with <tool and </tool_call> in it.")
    assert accepts(constraint, "Let me look.\n" + call("get_weather", {"city": "Paris", "days": 3}))
    assert accepts(constraint, call("now", {}) + "\n" + call("get_weather", {"city": "北京"}) + "\nDone.")
    assert not accepts(constraint, call("get_weather", {"days": 3}))
    assert not accepts(constraint, call("get_weather", {"city": "Paris", "days": 10}))
    assert not accepts(constraint, call("delete_all", {}))
    assert not accepts(constraint, "<tool_call>\nnot a call")


def test_random_answers_hold_only_fitting_calls():
    rng = random.Random(3)
    # A word of text and the marker, so that random answers come to calls often.
    table = TokenTable(
        [bytes([byte]) for byte in range(256)] + [b"", b"<tool_call>", b"</tool_call>"], [256], [257, 258]
    )
    vocabulary = vocabulary_of(table, with_markers=True)
    for required_tool in (None, "*", "get_weather"):
        constraint = constraint_of(tools_grammar(required_tool), vocabulary)
        texts = [text for _ in range(40) if (text := walk(constraint, rng, table, limit=60)) is not None]
        counts = [check_calls(text) for text in texts]
        assert len(texts) > 20
        if required_tool is not None:
            assert min(counts) >= 1
            assert all(text.startswith("<tool_call>") and text.endswith("</tool_call>") for text in texts)
        if required_tool == "get_weather":
            assert set(counts) == {1}
            assert all('"get_weather"' in text for text in texts)


def test_without_parallel_calls_there_is_one():
    one = call("get_weather", {"city": "北京"})
    may = constraint_of(tools_grammar(parallel_tool_calls=False))
    assert accepts(may, "No call.")
    assert accepts(may, f"Look: {one}\nDone.")
    assert not accepts(may, f"{one}\n{one}")
    must = constraint_of(tools_grammar("*", parallel_tool_calls=False))
    assert accepts(must, one)
    assert not accepts(must, f"{one}\n{one}")


def test_a_required_call_comes_at_once():
    constraint = constraint_of(tools_grammar("*"))
    assert accepts(constraint, call("now", {}) + "\n" + call("now", {}))
    assert not accepts(constraint, "Sure. " + call("now", {}))
    assert not accepts(constraint, "")
    assert not accepts(constraint_of(tools_grammar("get_weather")), call("now", {}))


@pytest.mark.parametrize(
    ("tools", "required_tool", "words"),
    [
        (TOOLS, "missing", "'missing'"),
        ([], None, "1 to 128"),
        ([*TOOLS, TOOLS[1]], None, "Two tools"),
        ([{"function": {"name": "a b"}}], None, "a b"),
        ([{"function": {"name": "f", "parameters": {"not": {}}}}], None, "'f'.*`not`"),
        ({"a": 1}, None, "list"),
    ],
)
def test_a_wrong_list_of_tools_gets_a_sentence(tools: object, required_tool: str | None, words: str):
    with pytest.raises(GrammarRefusal, match=words):
        lark_of(tools_grammar(required_tool, tools))
