"""Calls of tools in Qwen's XML: what the grammar lets through, the parser reads as arguments that fit."""

import json
import random

import jsonschema
import pytest
from support.grammar_walks import BYTE_TABLE, accepts, constraint_of, vocabulary_of, walk
from support.read_calls import read_calls

from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.lark_source import lark_of
from qwenstack.engine.grammar.refusal import GrammarRefusal
from qwenstack.engine.grammar.token_table import TokenTable
from qwenstack.engine.grammar.xml_calls import is_plain_text

ORDER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "unit": {"enum": ["°C", "°F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "name": {"type": "string", "minLength": 1, "maxLength": 4},
        "note": {"type": "string", "minLength": 2},
        "when": {"$ref": "#/$defs/when"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["city", "days"],
    "$defs": {"when": {"type": "object", "properties": {"hour": {"type": "integer"}}, "required": ["hour"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "order", "parameters": ORDER}},
    {"type": "function", "function": {"name": "now"}},
    {"type": "function", "function": {"name": "log", "parameters": {"type": "object"}}},
]
SCHEMAS = {"order": ORDER, "now": {"type": "object", "maxProperties": 0}, "log": {"type": "object"}}


def grammar(required_tool: str | None = None, tools: object = TOOLS) -> Grammar:
    return Grammar(kind="tools", source=json.dumps(tools), required_tool=required_tool)


def with_argument(schema: object) -> Grammar:
    """One tool `f` with one parameter `a`."""
    parameters = {"type": "object", "properties": {"a": schema}}
    return grammar(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])


def call(name: str, *arguments: tuple[str, str]) -> str:
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments)
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def read(text: str) -> list[tuple[str, object]]:
    return read_calls(text, TOOLS, "qwen_xml")[1]


def test_calls_that_fit_are_let_through_and_read_back() -> None:
    constraint = constraint_of(grammar(), tool_format="qwen_xml")
    text = call("order", ("city", "New\nYork <3"), ("days", "3"), ("when", '{"hour": 7}')) + "\n" + call("now")
    assert accepts(constraint, "First:\n" + text)
    assert read(text) == [("order", {"city": "New\nYork <3", "days": 3, "when": {"hour": 7}}), ("now", {})]
    assert accepts(constraint, call("order", ("city", "12"), ("code", '"AB"'), ("unit", "°F"), ("days", "1")))
    assert accepts(constraint, call("log", ("any_thing", "at all"), ("x", "[1]")))


def test_parameters_that_need_not_be_an_object_are_one() -> None:
    parameters = {"type": ["null", "object"], "properties": {"a": {"type": "string"}}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    constraint = constraint_of(grammar("*", tools), tool_format="qwen_xml")
    assert accepts(constraint, call("f", ("a", "b")))
    assert not accepts(constraint, call("f"))


@pytest.mark.parametrize(
    "text",
    [
        call("order", ("city", "Paris")),
        call("order", ("city", "Paris"), ("days", "10")),
        call("order", ("city", "Paris"), ("code", '"ABC"'), ("days", "1")),
        call("order", ("city", "Paris"), ("unit", "K"), ("days", "1")),
        call("order", ("city", "Paris"), ("days", "1"), ("name", "abcde")),
        call("order", ("city", "Paris"), ("days", "1"), ("note", "a")),
        call("order", ("days", "1"), ("city", "Paris")),
        call("now", ("city", "Paris")),
        call("delete"),
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ],
)
def test_calls_that_do_not_fit_are_not(text: str) -> None:
    assert not accepts(constraint_of(grammar(), tool_format="qwen_xml"), text)


@pytest.mark.parametrize("required_tool", ["*", "order"])
def test_random_calls_fit_their_schemas(required_tool: str) -> None:
    rng = random.Random(5)
    words = [b"", b"<tool_call>", b"</tool_call>", b"\n</parameter>\n"]
    table = TokenTable([*BYTE_TABLE.tokens[:256], *words], [256], [257, 258])
    constraint = constraint_of(grammar(required_tool), vocabulary_of(table, with_markers=True), tool_format="qwen_xml")
    texts = [text for _ in range(40) if (text := walk(constraint, rng, table, limit=80)) is not None]
    assert len(texts) > 10
    for text in texts:
        calls = read(text)
        assert calls
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"anyOf": [{"type": "object"}]}, "`anyOf`"),
        ({"type": "array"}, "object"),
        ({"type": "object", "properties": {"a>b": {"type": "string"}}}, "a>b"),
        ({"type": "object", "properties": {" a": {"type": "string"}}}, "blanks"),
        ({"type": "object", "properties": {"a\t": {"type": "string"}}}, "blanks"),
        ({"type": "object", "properties": {"a" * 257: {"type": "string"}}}, "1 to 256 characters"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "`not`"),
        ({"type": "object", "required": ["a", 1]}, "`required`"),
        ({"type": "object", "properties": {"a": {"enum": ["b", "c\n</parameter>"]}}}, "</parameter>"),
    ],
)
def test_what_cannot_be_written_so_is_refused_by_name(parameters: object, reason: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    with pytest.raises(GrammarRefusal, match="The parameters of the tool 'f'") as refused:
        lark_of(grammar(tools=tools), "qwen_xml")
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    "lengths",
    [
        {"minLength": '0}/ "injected"\nstart: /(?s:.*)/\n// '},
        {"maxLength": "3}/ | /(?s:.*)"},
        {"minLength": -1},
        {"minLength": 2.5},
        {"minLength": True},
        {"minLength": 3, "maxLength": 2},
        {"enum": []},
        {"enum": "ab"},
    ],
    ids=str,
)
def test_what_is_no_length_or_no_choice_never_reaches_the_text_of_the_grammar(lengths: dict[str, object]) -> None:
    """It goes where the schema's own compiler judges it."""
    schema = {"type": "string", **lengths}
    assert not is_plain_text(schema)
    rule = next(line for line in lark_of(with_argument(schema), "qwen_xml").splitlines() if "function_0:" in line)
    assert rule.index("%json") < rule.index(json.dumps(schema)[1:-1])


def test_choices_with_lengths_are_held_to_both() -> None:
    constraint = constraint_of(
        with_argument({"type": "string", "enum": ["ab", "abc"], "maxLength": 2}), tool_format="qwen_xml"
    )
    assert accepts(constraint, call("f", ("a", '"ab"')))
    assert not accepts(constraint, call("f", ("a", '"abc"')))
    assert not accepts(constraint, call("f", ("a", "abc")))


@pytest.mark.parametrize("text", ["text_from_" + "9" * 5000, "text_from_99999999999"])
def test_words_of_a_schema_are_never_taken_for_rules(text: str) -> None:
    schema = {"type": "object", "properties": {text[:200]: {"enum": [text]}}}
    lines = lark_of(with_argument(schema), "qwen_xml").splitlines()
    assert not any(line.startswith("text_from_") for line in lines)


@pytest.mark.parametrize("key", ["a b", "50%", "a/b c%41~", "größe"])
def test_arguments_that_are_no_text_may_have_any_name(key: str) -> None:
    parameters = {"type": "object", "properties": {key: {"type": "integer"}}}
    constraint = constraint_of(
        grammar(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}]),
        tool_format="qwen_xml",
    )
    assert accepts(constraint, call("f", (key, "12")))
    assert not accepts(constraint, call("f", (key, "x")))


def test_other_arguments_may_refer_to_definitions() -> None:
    parameters = {
        "type": "object",
        "$defs": {"X": {"type": "integer"}},
        "additionalProperties": {"$ref": "#/$defs/X"},
    }
    constraint = constraint_of(
        grammar(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}]),
        tool_format="qwen_xml",
    )
    assert accepts(constraint, call("f", ("any", "12")))
    assert not accepts(constraint, call("f", ("any", "x")))
