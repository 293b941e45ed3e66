"""Tools and their calls, as far as all wires share them."""

from __future__ import annotations

import json
import reprlib
import secrets
from collections.abc import Mapping, Sequence
from typing import cast

import msgspec

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import MAX_GRAMMAR_CHARS, Grammar
from qwenstack.core.outputs import GeneratedToolCall

MAX_TOOLS = 128


def schema_grammar(param: str, schema: Mapping[str, object]) -> Grammar:
    """Return the grammar of JSON that fits a schema, which the field `param` has.

    Raises:
        RequestError: it is too long.
    """
    return Grammar(kind="json_schema", source=_written(param, schema))


def tools_grammar(
    tools: Sequence[Mapping[str, object]],
    *,
    required_tool: str | None,
    parallel: bool,
    schema_field: str = "function.parameters",
) -> Grammar:
    """Return the grammar of answers with calls of tools, given in OpenAI's shape.

    Args:
        tools: functions that may be called.
        required_tool: the one that has to be called, `*` for any, None where no call is demanded.
        parallel: whether an answer may hold several calls.
        schema_field: what the caller's API calls the schema of the arguments, within a tool.

    Raises:
        RequestError: they are too long, or a schema lets no object through.
    """
    for index, tool in enumerate(tools):
        function = cast("Mapping[str, object]", tool["function"])
        _check_takes_objects(f"tools[{index}].{schema_field}", function.get("parameters"))
    source = _written("tools", tools)
    return Grammar(kind="tools", source=source, required_tool=required_tool, parallel_tool_calls=parallel)


def _check_takes_objects(param: str, schema: object) -> None:
    """Refuse a schema that clearly no object fits; what hides behind `$ref` or `anyOf` is left to the grammar."""
    if not isinstance(schema, dict):
        return
    said = cast("Mapping[str, object]", schema)
    keyword = _keyword_against_objects(said)
    if keyword is not None:
        text = (
            f"`{param}.{keyword}` is {reprlib.repr(said[keyword])}, which no object fits; the arguments of a call are "
            "an object. Give a schema of `type` 'object' with `properties`."
        )
        raise RequestError(text, param=param, code="invalid_value")


def _keyword_against_objects(schema: Mapping[str, object]) -> str | None:
    """Return the keyword that lets no object through, None where an object may fit."""
    types = schema.get("type", "object")
    if types != "object" and not (isinstance(types, list) and "object" in types):
        return "type"
    if "const" in schema and not isinstance(schema["const"], dict):
        return "const"
    choices = schema.get("enum")
    if isinstance(choices, list) and not any(isinstance(one, dict) for one in cast("list[object]", choices)):
        return "enum"
    return None


def _written(param: str, value: object) -> str:
    source = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(source) > MAX_GRAMMAR_CHARS:
        text = f"`{param}` has {len(source)} characters of JSON; at most {MAX_GRAMMAR_CHARS} are taken. Give fewer."
        raise RequestError(text, param=param, code="invalid_value")
    return source


def whole_arguments(call: GeneratedToolCall) -> dict[str, object] | None:
    """Return a call's arguments by name; None where `max_tokens` cut the call."""
    try:
        arguments: object = msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        return None
    return cast("dict[str, object]", arguments) if isinstance(arguments, dict) else None


def new_call_id() -> str:
    """Make the id of a tool call; no two are the same, whoever asks."""
    return f"call_{secrets.token_hex(12)}"
