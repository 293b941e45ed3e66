"""JSON schemas: every finished text validates, by a validator that knows nothing of the engine."""

import json
import random

import jsonschema
import pytest
from support.grammar_walks import accepts, constraint_of, walk
from support.random_schemas import random_schema

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.json_schema import check_schema
from qwenstack.engine.grammar.lark_source import lark_of
from qwenstack.engine.grammar.refusal import GrammarRefusal

NUM_SCHEMAS = 200


def schema_grammar(schema: object) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(schema))


def test_every_finished_text_of_200_random_schemas_validates():
    rng = random.Random(20261125)
    finished = 0
    for number in range(NUM_SCHEMAS):
        schema = random_schema(rng)
        constraint = constraint_of(schema_grammar(schema))
        texts = [text for _ in range(3) if (text := walk(constraint, rng)) is not None]
        finished += bool(texts)
        for text in texts:
            try:
                jsonschema.validate(
                    json.loads(text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
                )
            except Exception as error:
                raise AssertionError(f"schema {number}: {json.dumps(schema)} allowed {text!r}: {error}") from error
    assert finished >= 0.95 * NUM_SCHEMAS


def test_the_usual_layouts_of_json_are_all_allowed():
    value = {"name": 'Ada "L" ☃', "tags": ["a", "b"], "size": -1.5e3}
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "size": {"type": "number"},
        },
    }
    constraint = constraint_of(schema_grammar(schema))
    for text in (json.dumps(value, ensure_ascii=False), json.dumps(value, ensure_ascii=False, indent=4)):
        assert accepts(constraint, text)
    assert accepts(constraint, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    assert not accepts(constraint, json.dumps({**value, "size": "large"}))


def test_json_object_is_any_object_and_nothing_else():
    constraint = constraint_of(Grammar(kind="json_object"))
    assert accepts(constraint, '{"a": [1, {"b": null}], "c": "d"}')
    assert not accepts(constraint, "[1]")
    assert not accepts(constraint, '"text"')


@pytest.mark.parametrize(
    "keyword", ["not", "if", "contains", "uniqueItems", "dependentRequired", "propertyNames", "nullable", "$dynamicRef"]
)
def test_what_cannot_be_held_to_is_refused_by_its_name(keyword: str):
    for schema in ({"type": "array", keyword: True}, {"properties": {"a": {keyword: {}}}}):
        with pytest.raises(GrammarRefusal, match=f"`{keyword.replace('$', '.')}`"):
            lark_of(schema_grammar(schema))


def test_the_matcher_cannot_be_told_to_look_away():
    with pytest.raises(GrammarRefusal, match="x-guidance"):
        lark_of(schema_grammar({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "https://example.com/schema"}, "only references into itself"),
        ({"$ref": "#/$defs/missing"}, "/\\$defs/missing"),
        ({"type": "string", "format": "iri"}, "iri"),
        ({"type": "object", "minProperties": 3}, "minProperties"),
        ({"properties": []}, "#/properties"),
        ({"items": [{}]}, "#/items"),
        ({"type": "string", "pattern": "(?=a)b"}, "."),
    ],
)
def test_a_schema_that_is_wrong_gets_a_sentence(schema: object, words: str):
    with pytest.raises((GrammarRefusal, RequestError), match=words):
        constraint_of(schema_grammar(schema))


def test_depth_and_size_are_bounded():
    deep: object = {}
    for _ in range(33):
        deep = {"type": "array", "items": deep}
    with pytest.raises(GrammarRefusal, match="nested deeper than 32"):
        lark_of(schema_grammar(deep))
    with pytest.raises(GrammarRefusal, match="at most 10000"):
        lark_of(schema_grammar({"enum": list(range(10_001))}))
    with pytest.raises(GrammarRefusal, match="not JSON"):
        lark_of(Grammar(kind="json_schema", source="[" * 60_000))


def test_remarks_change_nothing():
    plain = schema_grammar({"type": "object", "properties": {"a": {"type": "integer"}}})
    remarked = schema_grammar(
        {"$schema": "x", "title": "T", "type": "object", "properties": {"a": {"type": "integer", "default": 3}}}
    )
    assert lark_of(plain) == lark_of(remarked)


def _union(*, required: bool = True, names: tuple[str, str] = ("cat", "dog")) -> dict:
    def kind(name: str) -> dict:
        fields = {"kind": {"const": name, "type": "string"}, "age": {"type": "integer"}}
        return {"type": "object", "properties": fields, "required": ["kind", "age"] if required else ["age"]}

    return {
        "oneOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/b"}],
        "$defs": {"a/b": kind(names[0]), "b": kind(names[1])},
    }


@pytest.mark.parametrize("root", ["#", "#/$defs/arguments"])
def test_a_discriminated_union_is_held_to_behind_its_references(root: str):
    checked = check_schema(_union(), root=root)
    assert isinstance(checked, dict)
    assert "oneOf" not in checked
    assert [branch["$ref"] for branch in checked["anyOf"]] == [f"{root}/$defs/a~1b", f"{root}/$defs/b"]


@pytest.mark.parametrize(
    "union", [_union(required=False), _union(names=("cat", "cat")), {"oneOf": [True, {}]}, {"oneOf": []}]
)
def test_branches_that_may_both_fit_stay_one_of(union: dict):
    assert "oneOf" in check_schema(union)


@pytest.mark.parametrize("reference", ["#/oneOf/0", "#/$defs/a%2Fb"])
def test_no_one_of_is_renamed_where_a_reference_could_tell(reference: str):
    assert "oneOf" in check_schema({**_union(), "properties": {"other": {"$ref": reference}}})


def test_formats_that_no_standard_knows_are_remarks():
    assert check_schema({"type": "string", "format": "password"}) == {"type": "string"}
    assert check_schema({"type": "string", "format": "uri"}) == {"type": "string", "format": "uri"}
