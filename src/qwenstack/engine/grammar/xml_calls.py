"""The calls of tools in Qwen's XML: the form that Qwen3-Coder is trained on.

A function is `<function=get_weather>`, for each argument `<parameter=city>`, a line end, the value, a line end and
`</parameter>`, then `</function>`, each on a line of its own. Texts stand as they are, all else as JSON.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import cast
from urllib.parse import quote

from qwenstack.engine.grammar.json_schema import Json, check_schema, is_remark, schema_lark
from qwenstack.engine.grammar.refusal import GrammarRefusal

_KEY = re.compile(r"(?!\s)[^<>\n]{1,256}(?<!\s)")
"""As long as the server lets names be; the parser takes blanks around a name for none of it."""
_OF_OBJECTS = frozenset({"type", "properties", "required", "additionalProperties", "$defs", "definitions"})
_OF_CHOICE = frozenset({"type", "enum", "const"})
_OF_PLAIN_TEXT = frozenset({"type", "minLength", "maxLength"})
_END_TAG = "</parameter>"
_CLOSE = "<\\/parameter>"
_TEXT_FROM = "text_from_"
"""Names the rule of texts by their least length; those characters are no `<`, so that no closing tag is among them."""


def function_lark(name: str, parameters: Json, least_lengths: set[int]) -> str:
    """Return the right side of the rule of one function's call, on one line.

    `text_rules` of the lengths that it adds to `least_lengths` are to stand beside it.

    Raises:
        GrammarRefusal: the schema is wrong, or has a form that this way of calling cannot hold to.
    """
    root = "#/$defs/arguments"
    checked = check_schema(parameters, root=root, depth=1)
    if not isinstance(checked, dict) or not _takes_objects(checked) or checked.keys() - _OF_OBJECTS:
        extra = sorted(checked.keys() - _OF_OBJECTS) if isinstance(checked, dict) else []
        raise GrammarRefusal(
            "They must be an object with `properties`; this model writes each argument by itself, so that "
            f"{', '.join(f'`{one}`' for one in extra) or 'another form'} cannot be held to."
        )
    properties, required = checked.get("properties", {}), checked.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise GrammarRefusal("`properties` must be an object, `required` a list of names in it.")
    required_names = [one for one in required if isinstance(one, str)]
    if len(required_names) < len(required):
        raise GrammarRefusal("`required` must be a list of names.")
    names = list(dict.fromkeys([*properties, *required_names]))
    parts = [json.dumps(f"<function={name}>\n")]
    for key in names:
        schema: Json = properties.get(key, True)
        value = _value_lark(schema, _reference(f"{root}/properties/{_pointer(key)}", checked), least_lengths)
        part = f"{_open(key)} {value} {json.dumps(chr(10))}"
        parts.append(part if key in required_names else f"({part})?")
    others = checked.get("additionalProperties", True)
    if not names and others is not False:
        value = _value_lark(others, _reference(f"{root}/additionalProperties", checked), least_lengths)
        parts.append(f'("<parameter=" /[a-zA-Z_][a-zA-Z0-9_.\\-]{{0,63}}/ ">\\n" {value} "\\n")*')
    return " ".join([*parts, json.dumps("</function>")])


def _takes_objects(checked: Mapping[str, Json]) -> bool:
    types = checked.get("type", "object")
    return types == "object" or (isinstance(types, list) and "object" in types)


def is_plain_text(schema: object) -> bool:
    """Whether an argument of this schema stands as it is, without quotes.

    Texts that must have a form (`pattern`, `format`) do not: they are written as JSON, whose grammar can hold to it.
    """
    if not isinstance(schema, dict):
        return False
    said = {keyword: value for keyword, value in cast("dict[str, Json]", schema).items() if not is_remark(keyword)}
    if said.get("type", "string") != "string":
        return False
    if not said.keys() - _OF_CHOICE and len(said.keys() & {"enum", "const"}) == 1:
        return all(isinstance(one, str) for one in _choices(said)) and bool(_choices(said))
    return "type" in said and not said.keys() - _OF_PLAIN_TEXT and _has_lengths(said)


def _choices(said: Mapping[str, Json]) -> list[Json]:
    if "const" in said:
        return [said["const"]]
    choices = said.get("enum")
    return choices if isinstance(choices, list) else []


def _has_lengths(said: Mapping[str, Json]) -> bool:
    least, most = said.get("minLength", 0), said.get("maxLength", sys.maxsize)
    if isinstance(least, bool) or isinstance(most, bool) or not isinstance(least, int) or not isinstance(most, int):
        return False
    return 0 <= least <= most


def text_rules(least_lengths: Iterable[int]) -> list[str]:
    """Return the rules of texts that `function_lark` refers to: each ends at the first closing tag."""
    lengths = sorted(least_lengths)
    # The last of the least characters is no line end: the one before the closing tag is not the text's own.
    starts = [f"[^<]{{{least - 1}}}[^<\\n]" if least else "" for least in lengths]
    return [
        f"{_TEXT_FROM}{least}[lazy]: /{start}(?s:.*){_CLOSE}/" for least, start in zip(lengths, starts, strict=True)
    ]


def _open(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise GrammarRefusal(
            f"The parameter {key[:80]!r} cannot be named in this model's XML: 1 to 256 characters, none of them `<`, "
            "`>` or a line end, no blanks around."
        )
    return json.dumps(f"<parameter={key}>\n")


def _pointer(key: str) -> str:
    return quote(key.replace("~", "~0").replace("/", "~1"), safe="~")


def _reference(pointer: str, checked: Json) -> Json:
    return {"$ref": pointer, "$defs": {"arguments": checked}}


def _value_lark(schema: Json, as_json: Json, least_lengths: set[int]) -> str:
    """Return what stands between the tags of an argument, the closing one included."""
    if schema is True:
        least_lengths.add(0)
        return f"{_TEXT_FROM}0"
    if not is_plain_text(schema):
        return f"{schema_lark(as_json)} {json.dumps(chr(10) + _END_TAG)}"
    assert isinstance(schema, dict)
    if choices := [str(choice) for choice in _choices(schema)]:
        if any(_END_TAG in choice for choice in choices):
            raise GrammarRefusal(f"A value with `{_END_TAG}` in it cannot be written in this model's XML.")
        return f"/({'|'.join(_escaped(choice) for choice in choices)})\\n{_CLOSE}/"
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    assert isinstance(least, int)
    if most is not None:
        return f"/[^<]{{{least},{most}}}\\n{_CLOSE}/"
    least_lengths.add(least)
    return f"{_TEXT_FROM}{least}"


def _escaped(text: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)
