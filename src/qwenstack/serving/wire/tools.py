"""Tools and their calls, as far as all wires share them."""

from __future__ import annotations

import json
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


def tools_grammar(tools: Sequence[Mapping[str, object]], *, required_tool: str | None, parallel: bool) -> Grammar:
    """Return the grammar of answers with calls of tools, given in OpenAI's shape.

    Args:
        tools: functions that may be called.
        required_tool: the one that has to be called, `*` for any, None where no call is demanded.
        parallel: whether an answer may hold several calls.

    Raises:
        RequestError: they are too long.
    """
    source = _written("tools", tools)
    return Grammar(kind="tools", source=source, required_tool=required_tool, parallel_tool_calls=parallel)


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
