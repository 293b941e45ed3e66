"""JSON schemas that can be held to: which keywords are known, how large a schema may be, how it is written into Lark.

The matcher knows most of draft 2020-12 and refuses some of the rest; what would be silently ignored is refused here, by
name. A schema is JSON from an untrusted caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, cast

import msgspec

from qwenstack.engine.grammar.limits import MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES
from qwenstack.engine.grammar.refusal import GrammarRefusal

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

WHITESPACE = r" |\n {0,32}"
"""Between the parts of JSON: nothing, a space, or a new line and its indentation; no model gets lost in blanks."""

_DATE = (
    "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
    "-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_PATTERN_OF_FORMAT = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
"""RFC 3339 without what only some calendars and readers have: February 29th and later, the year 0, leap seconds."""

_FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uuid"}
    | {"uri", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer", "relative-json-pointer", "regex"}
)
"""Those of draft 2020-12 (validation, section 7.3); others are remarks of whoever made them up (7.2)."""

MAX_TAGS = 64
"""Properties, and values of one, that are looked at to tell the branches of a `oneOf` apart."""

_HOLDS = Literal["value", "schema", "schemas", "named schemas"]
_KEYWORDS: Mapping[str, _HOLDS] = {
    "additionalProperties": "schema",
    "allOf": "schemas",
    "anyOf": "schemas",
    "const": "value",
    "$defs": "named schemas",
    "definitions": "named schemas",
    "enum": "value",
    "exclusiveMaximum": "value",
    "exclusiveMinimum": "value",
    "format": "value",
    "items": "schema",
    "maximum": "value",
    "maxItems": "value",
    "maxLength": "value",
    "maxProperties": "value",
    "minimum": "value",
    "minItems": "value",
    "minLength": "value",
    "minProperties": "value",
    "multipleOf": "value",
    "oneOf": "schemas",
    "pattern": "value",
    "patternProperties": "named schemas",
    "prefixItems": "schemas",
    "properties": "named schemas",
    "$ref": "value",
    "required": "value",
    "type": "value",
}
_REMARKS = frozenset(
    {"$comment", "$id", "$schema", "default", "deprecated", "description", "discriminator", "example", "examples"}
    | {"readOnly", "title", "writeOnly", "contentMediaType", "contentEncoding"}
)
"""Keywords that say nothing about which values fit."""


def is_remark(keyword: str) -> bool:
    """Whether a keyword says nothing about which values fit."""
    return keyword in _REMARKS or (keyword.startswith("x-") and keyword != "x-guidance")


def parse_json(text: str, what: str) -> Json:
    """Read JSON from a caller.

    Raises:
        GrammarRefusal: it is not JSON, nested too deep or too large; `what` names it.
    """
    try:
        value = cast("Json", msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise GrammarRefusal(f"{what} is not JSON: {error}.") from None
    count = sum(1 for _ in _nodes(value))
    if count > MAX_SCHEMA_NODES:
        raise GrammarRefusal(f"{what} has {count} values; at most {MAX_SCHEMA_NODES} are taken.")
    return value


def check_schema(schema: Json, *, root: str = "#", depth: int = 0) -> Json:
    """Return a schema without its remarks, its references moved below `root`.

    Args:
        schema: what the caller sent.
        root: where the schema's own root will stand in the one that is compiled.
        depth: schemas around this one.

    Raises:
        GrammarRefusal: it is not a schema, nested too deep, or has a keyword that cannot be held to.
    """
    whole = schema if _may_rename(schema) else None
    return _check_schema(schema, "#", whole=whole, root=root, depth=depth)


def _check_schema(schema: Json, place: str, *, whole: Json, root: str, depth: int) -> Json:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise GrammarRefusal(f"The JSON schema has {json.dumps(schema)[:60]} at `{place}`, where a schema must stand.")
    if depth > MAX_SCHEMA_DEPTH:
        raise GrammarRefusal(f"The JSON schema is nested deeper than {MAX_SCHEMA_DEPTH} schemas, at `{place}`.")
    checked: dict[str, Json] = {}
    for keyword, value in schema.items():
        if is_remark(keyword):
            continue
        below = f"{place}/{keyword}"
        checked[keyword] = _check_keyword(keyword, value, below, whole=whole, root=root, depth=depth)
    _check_num_properties(checked, place)
    _check_format(checked)
    branches = schema.get("oneOf")
    if isinstance(branches, list) and "anyOf" not in checked and _are_told_apart(branches, whole):
        checked["anyOf"] = checked.pop("oneOf")  # the same then; behind references the matcher does not see that it is
    return checked


def schema_lark(schema: Json) -> str:
    """Return a checked schema as a part of a Lark rule."""
    options: Json = {"whitespace_pattern": WHITESPACE}
    whole: dict[str, Json] = {"x-guidance": options}
    if isinstance(schema, dict):
        whole |= schema
    else:
        whole |= {} if schema else {"anyOf": []}
    return f"%json {json.dumps(whole)}"


def _check_keyword(keyword: str, value: Json, place: str, *, whole: Json, root: str, depth: int) -> Json:
    if keyword == "uniqueItems" and value is False:
        return False
    holds = _KEYWORDS.get(keyword)
    if holds is None:
        raise GrammarRefusal(
            f"The JSON schema uses `{keyword}` at `{place}`, which cannot be held to while generating; leave it out."
        )
    if keyword == "$ref":
        return _moved_reference(value, place, root)
    check = partial(_check_schema, whole=whole, root=root, depth=depth + 1)
    if holds == "schema":
        return check(value, place)
    if holds == "schemas":
        if not isinstance(value, list):
            raise GrammarRefusal(f"The JSON schema has no list at `{place}`.")
        return [check(one, f"{place}/{i}") for i, one in enumerate(value)]
    if holds == "named schemas":
        if not isinstance(value, dict):
            raise GrammarRefusal(f"The JSON schema has no object at `{place}`.")
        return {key: check(one, f"{place}/{key}") for key, one in value.items()}
    return value


def _moved_reference(value: Json, place: str, root: str) -> str:
    if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
        raise GrammarRefusal(
            f"The JSON schema refers to {json.dumps(value)[:100]} at `{place}`; only references into itself, "
            "such as `#/$defs/name`, are followed."
        )
    return root + value[1:]


def _check_num_properties(schema: dict[str, Json], place: str) -> None:
    """Drop a `minProperties` that `required` implies; refuse others: a free key may come twice and count once."""
    least, required = schema.get("minProperties"), schema.get("required")
    if not isinstance(least, int):
        return
    if least <= (len(required) if isinstance(required, list) else 0):
        del schema["minProperties"]
    elif least > 1:
        raise GrammarRefusal(
            f"The JSON schema asks for {least} properties at `{place}/minProperties`; at most 1, or as many as are "
            "`required`, can be held to."
        )


def _check_format(schema: dict[str, Json]) -> None:
    """Write a format as a pattern where we have one, and drop one that is nobody's but the caller's."""
    named = schema.get("format")
    pattern = _PATTERN_OF_FORMAT.get(str(named))
    if isinstance(named, str) and named not in _FORMATS:
        del schema["format"]
    elif pattern is not None and "pattern" not in schema:
        del schema["format"]
        schema["pattern"] = pattern


def _may_rename(schema: Json) -> bool:
    """Whether no reference leads through a `oneOf`, or is written in a way that only the matcher resolves."""
    references = (node.get("$ref") for node in _nodes(schema) if isinstance(node, dict))
    return not any(isinstance(each, str) and ("/oneOf" in each or "%" in each) for each in references)


def _are_told_apart(branches: Sequence[Json], whole: Json) -> bool:
    """Whether all branches require one property of which each has texts of its own, as of a discriminated union.

    Without a `whole` schema no reference is followed.
    """
    tags = [_tags_of(_resolved(branch, whole)) for branch in branches]
    shared = set[str].intersection(*map(set[str], tags)) if tags else set[str]()
    return any(_are_disjoint([tag[name] for tag in tags]) for name in shared)


def _are_disjoint(sets: Sequence[frozenset[str]]) -> bool:
    return len(frozenset[str]().union(*sets)) == sum(map(len, sets))


def _tags_of(schema: Json) -> Mapping[str, frozenset[str]]:
    """Return the texts that an object's required properties may have, of those that are bound to some."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return {}
    required, properties = schema.get("required"), schema.get("properties")
    if not isinstance(required, list) or not isinstance(properties, dict):
        return {}
    texts = {name: _texts_of(properties.get(name)) for name in required[:MAX_TAGS] if isinstance(name, str)}
    return {name: bound for name, bound in texts.items() if bound}


def _texts_of(schema: Json) -> frozenset[str]:
    if not isinstance(schema, dict):
        return frozenset()
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or len(values) > MAX_TAGS:
        return frozenset()
    texts = frozenset(value for value in values if isinstance(value, str))
    return texts if len(texts) == len(values) else frozenset()


def _resolved(schema: Json, whole: Json) -> Json:
    """Follow a reference once; what stands beside it can only narrow what it says."""
    reference = schema.get("$ref") if isinstance(schema, dict) else None
    if not isinstance(reference, str):
        return schema
    found = whole
    for name in reference.split("/")[1:]:
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _nodes(value: Json) -> Iterator[Json]:
    pending = [value]
    while pending:
        one = pending.pop()
        yield one
        if isinstance(one, list):
            pending.extend(one)
        elif isinstance(one, dict):
            pending.extend(one.values())
