"""Calls of tools: free text, and between the markers nothing but a call whose arguments fit."""

import json
import random
import re

import jsonschema
import pytest
from support.grammar_walks import accepts, constraint_of, vocabulary_of, walk
from support.read_calls import read_calls

from qwenstack.core.errors import RequestError
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


def bare(name: str, arguments: object, *, indent: int | None = None) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, indent=indent)


def test_an_answer_that_begins_with_the_json_of_a_call_is_held_to_it():
    constraint = constraint_of(tools_grammar())
    for one in (
        bare("get_weather", {"city": "Paris", "days": 3}),
        bare("get_weather", {"city": "Paris"}, indent=2),
        f"```json\n{bare('now', {}, indent=2)}\n```",
        f"\n```\n{bare('now', {})}```\nDone, and <b> is no mark.",
        f"{bare('now', {})}\n{bare('get_weather', {'city': '北京'})}",
        f"```json\n{bare('now', {})}\n```\n```json\n{bare('now', {})}\n```",
        f"```json\n{bare('now', {})}\n{bare('now', {})}\n```",
    ):
        assert accepts(constraint, one), one
    for one in (
        bare("get_weather", {"days": 3}),
        f"```json\n{bare('get_weather', {'city': 'Paris', 'days': 10})}\n```",
        bare("now", {"x": 1}),
        f"{bare('now', {})}\n{bare('get_weather', {'city': 'far too long'})}",
        f"```json\n{bare('now', {})}\n```\n\n{bare('now', {'x': 1})}",
        '{"name": "now", "arguments": 5}',
        f"{bare('now', {})} <tool_call>",
    ):
        assert not accepts(constraint, one), one


def test_json_that_names_no_tool_is_text():
    constraint = constraint_of(tools_grammar())
    for one in (
        bare("delete_all", {}),
        '{"name": "now"}',
        '{"name": "now", "age": 7}',
        "```python\nprint()\n```",
        f"Look: {bare('now', {'x': 1})}",
        '{"name": "now", "arguments"',
    ):
        assert accepts(constraint, one), one


def read(text: str) -> list[tuple[str, object]]:
    return read_calls(text, TOOLS, "hermes")[1]


def test_parser_and_grammar_agree_on_what_stands_behind_a_forgotten_opening_mark():
    wrong = f"{bare('now', {})}\n</tool_call>\n{bare('now', {'x': 1})}"
    assert accepts(constraint_of(tools_grammar()), wrong)
    assert read(wrong) == [("now", {})]
    named = [{"type": "function", "function": {"name": "name"}}]
    escaped = '{"name": "n\\u0061me", "arguments": {"x": 1}}'
    assert read_calls(escaped, named, "hermes") == (escaped, [])


HEADS = [
    b'{"name": "get_weather", "arguments": ',
    b'{ "name":"now","arguments" :',
    b"```json\n",
    b"\n```",
    b'{"city": "',
]


@pytest.mark.parametrize("is_parallel", [True, False])
def test_what_the_parser_reads_in_random_answers_fits(is_parallel: bool):
    rng = random.Random(4)
    table = TokenTable(
        [bytes([byte]) for byte in range(256)] + [b"", b"<tool_call>", b"</tool_call>", *(30 * HEADS)],
        [256],
        [257, 258],
    )
    constraint = constraint_of(tools_grammar(parallel_tool_calls=is_parallel), vocabulary_of(table, with_markers=True))
    texts = [text for _ in range(300) if (text := walk(constraint, rng, table, limit=30)) is not None]
    calls = [read(text) for text in texts]
    for one in calls:
        for name, arguments in one:
            jsonschema.validate(arguments, SCHEMAS[name])
    counts = [len(one) for one in calls]
    assert sum(count > 0 for count in counts) > 20
    assert max(counts) > 1 if is_parallel else max(counts) == 1


def test_without_parallel_calls_there_is_one():
    one = call("get_weather", {"city": "北京"})
    may = constraint_of(tools_grammar(parallel_tool_calls=False))
    assert accepts(may, "No call.")
    assert accepts(may, f"Look: {one}\nDone.")
    assert not accepts(may, f"{one}\n{one}")
    assert accepts(may, bare("now", {}))
    assert accepts(may, bare("now", {}) + "\nDone.")
    assert not accepts(may, bare("now", {}) + "\n" + bare("now", {}))
    assert not accepts(may, f"```json\n{bare('now', {})}\n```\n```json\n{bare('now', {})}\n```")
    must = constraint_of(tools_grammar("*", parallel_tool_calls=False))
    assert accepts(must, one)
    assert not accepts(must, f"{one}\n{one}")


def test_a_required_call_comes_at_once():
    constraint = constraint_of(tools_grammar("*"))
    assert accepts(constraint, call("now", {}) + "\n" + call("now", {}))
    assert not accepts(constraint, "Sure. " + call("now", {}))
    assert not accepts(constraint, "")
    assert not accepts(constraint_of(tools_grammar("get_weather")), call("now", {}))


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {"properties": CITY["properties"]},
        {"type": ["object", "null"]},
        {"anyOf": [{"type": "string"}, CITY]},
        {"oneOf": [{"type": "null"}, CITY]},
        {
            "$ref": "#/$defs/any",
            "$defs": {"any": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/city"}]}, "city": CITY},
        },
        {"enum": ["a", 5, None, [], {"city": "Paris"}]},
    ],
)
def test_arguments_are_an_object_whatever_the_schema_lets_through(schema: object):
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    constraint = constraint_of(tools_grammar("*", tools))
    assert accepts(constraint, call("f", {"city": "Paris"}))
    assert read(call("f", {"city": "Paris"})) == [("f", {"city": "Paris"})]
    for other in ("a", 5, None, [], True):
        assert not accepts(constraint, call("f", other)), other


def test_what_a_schema_asks_of_its_objects_is_kept():
    tree = {"anyOf": [{"type": "string"}, {"properties": {"child": {"$ref": "#"}}, "required": ["child"]}]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": tree}}]
    constraint = constraint_of(tools_grammar("*", tools))
    assert accepts(constraint, call("f", {"child": "a leaf"}))
    assert accepts(constraint, call("f", {"child": {"child": "a leaf"}}))
    assert not accepts(constraint, call("f", {}))


@pytest.mark.parametrize(
    "schema", [{"type": "string"}, False, {"const": 5}, {"anyOf": [{"type": "null"}, {"enum": [1]}]}]
)
def test_a_tool_whose_arguments_can_be_no_object_is_no_grammar(schema: object):
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    with pytest.raises(RequestError, match="parameters of the tool 'f' cannot be used"):
        constraint_of(tools_grammar("*", tools))


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
