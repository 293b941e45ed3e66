"""What the matcher cannot use is told in the words of whoever wrote it."""

import json
import re

import pytest
from support.grammar_walks import constraint_of

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar, GrammarKind


def complaint(kind: GrammarKind, source: object, required_tool: str | None = None) -> str:
    text = source if isinstance(source, str) else json.dumps(source)
    with pytest.raises(RequestError) as refusal:
        constraint_of(Grammar(kind=kind, source=text, required_tool=required_tool))
    assert (refusal.value.param, refusal.value.code) == ("grammar", "invalid_grammar")
    sentence = str(refusal.value)
    for own_word in ("llguidance", "coerce", "TOKEN_", "PATTERN:", "x-guidance", "function_", "\n"):
        assert own_word not in sentence
    return sentence


@pytest.mark.parametrize(
    ("pattern", "place", "reason"),
    [
        ("a(", "(", "unclosed group"),
        ("[z-a]", "z-a", "invalid character class range, the start must be <= the end"),
        ("(?=a)b", "(?=", "look-around, including look-ahead and look-behind, is not supported"),
        (r"a\1", r"\1", "backreferences are not supported"),
        ("é(", "(", "unclosed group"),
    ],
)
def test_a_wrong_pattern_says_what_is_wrong_where(pattern: str, place: str, reason: str):
    syntax = "Patterns have the syntax of Rust's `regex` crate."
    of_schema = f"The JSON schema cannot be used: the pattern `{pattern}` is wrong at `{place}`: {reason}. {syntax}"
    assert complaint("json_schema", {"properties": {"a": {"type": "string", "pattern": pattern}}}) == of_schema
    assert complaint("json_schema", {"patternProperties": {pattern: {}}}) == of_schema
    of_lark = (
        f"The grammar cannot be used, in line 3: the pattern `{pattern}` is wrong at `{place}`: {reason}. {syntax}"
    )
    assert complaint("ebnf", f"// mine\nstart: A\nA: /{pattern}/\n") == of_lark
    expected = f"The regular expression cannot be used: it is wrong at `{place}`: {reason}. {syntax}"
    assert complaint("regex", pattern) == expected


@pytest.mark.parametrize("pattern", ["a$b", "a^b", r"a\bc"])
def test_an_anchor_within_a_pattern_is_called_one(pattern: str):
    words = "an anchor or a word boundary inside; `^` and `$` may only stand at its ends, `\\b` nowhere."
    of_schema = complaint("json_schema", {"type": "string", "pattern": pattern})
    assert of_schema == f"The JSON schema cannot be used: the pattern `{pattern}` has {words}"
    assert complaint("regex", pattern) == f"The regular expression cannot be used: it has {words}"


def test_a_long_pattern_is_not_told_whole():
    assert len(complaint("json_schema", {"type": "string", "pattern": "x" * 3000 + "("})) < 300


def test_one_of_with_branches_that_overlap_is_sent_to_any_of():
    overlapping = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    assert complaint("json_schema", overlapping) == (
        "The JSON schema cannot be used: a `oneOf` has branches that are not known to exclude each other, and that "
        "only one of them fits cannot be held to. Write `anyOf` instead of `oneOf`."
    )
    assert "Write `anyOf`" in complaint("ebnf", f"start: %json {json.dumps(overlapping)}")
    constraint_of(Grammar(kind="json_schema", source=json.dumps({"anyOf": overlapping["oneOf"]})))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "foo"}, "The JSON schema cannot be used: Invalid type: foo."),
        ({"minimum": "x"}, "Expected a number for 'minimum', got \"x\"."),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable schema: incompatible types."),
        ({"$ref": "#/$defs/missing"}, "Pointer '/$defs/missing' does not exist."),
    ],
)
def test_other_faults_of_a_schema_are_told_as_the_matcher_tells_them(schema: object, words: str):
    assert words in complaint("json_schema", schema)


def test_the_tool_whose_parameters_cannot_be_used_is_named():
    parameters = {
        "fine": {"type": "object"},
        "broken": {"properties": {"a": {"type": "string", "pattern": "("}}},
        "missing": {"$ref": "#/$defs/a"},
    }
    tools = [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in parameters.items()]
    assert complaint("tools", tools[:2]).startswith(
        "The parameters of the tool 'broken' cannot be used: the pattern `(` is wrong at `(`: unclosed group."
    )
    assert complaint("tools", [tools[0], tools[2]], "missing") == (
        "The parameters of the tool 'missing' cannot be used: Pointer '/$defs/a' does not exist."
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("start: foo", 'in line 1: unknown name: "foo".'),
        ('\n\n%llguidance {}\nstart: "ä" )', 'in line 4: expecting rule, token or statement, at ")".'),
        ('start: "a"\r\nb: )', 'in line 2: expecting rule, token or statement, at ")".'),
        ('start: "a\n', "in line 1: no name, text or sign of Lark begins here, or a text is not closed."),
        ('foo: "a"', "The grammar cannot be used: it has no rule `start`, where Lark begins."),
        ("start: <foo>", "The grammar cannot be used: its compiler fails on it. Write it in another way."),
        ('start: %regex {"a": 1}', "unknown field `a`"),
        ("root ::= [a-z]{5,1}", "The grammar cannot be used: range end must be >= start, got (5, 1)."),
    ],
)
def test_places_are_those_of_the_callers_own_lines(source: str, words: str):
    sentence = complaint("ebnf", source)
    assert words in sentence
    assert not re.search(r"\d\(\d+\)|column", sentence)
