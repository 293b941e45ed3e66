"""What people and models say to each other: the words of OpenAI's chat API as frozen values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from qwenstack.core.errors import RequestError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function call that the model asked for."""

    name: str
    arguments: Mapping[str, object]
    """Arguments by parameter name, already parsed from JSON."""
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str = ""
    reasoning_content: str | None = None
    """What the assistant thought before it answered, without the `<think>` marks."""
    tool_calls: Sequence[ToolCall] = field(default=())
    tool_call_id: str | None = None
    """On a `tool` message: the call that it answers."""


def parse_messages(turns: Sequence[Message | Mapping[str, object]]) -> list[Message]:
    """Turn a conversation in OpenAI's shape into messages; those that already are stay as they are.

    Raises:
        RequestError: there is no turn, or one has an unknown role, no content or a field of the wrong type; `param`
            names it.
    """
    given = cast("object", turns)  # callers need not be typed, and a text is a sequence too, of characters
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise _wrong("messages", turns, "a list of messages, each with a role and content")
    if not turns:
        raise RequestError(
            "The conversation is empty; give at least one message.", param="messages", code="invalid_value"
        )
    return [
        turn if isinstance(turn, Message) else _parse_message(turn, f"messages[{at}]") for at, turn in enumerate(turns)
    ]


def content_is_missing(where: str, role: str) -> RequestError:
    """Return what to raise for a message that only the assistant, who may just call tools, can send without content."""
    param = f"{where}.content"
    return RequestError(f"`{param}` is missing; a {role} message needs text.", param=param, code="invalid_value")


def _parse_message(given: object, where: str) -> Message:
    if not isinstance(given, Mapping):
        raise _wrong(where, given, "an object with a role and content")
    turn = cast("Mapping[str, object]", given)
    role = turn.get("role")
    if role not in ROLES:
        raise _wrong(f"{where}.role", role, f"one of {', '.join(ROLES)}")
    calls = turn.get("tool_calls") or ()
    if not isinstance(calls, Sequence):
        raise _wrong(f"{where}.tool_calls", calls, "a list")
    content = _text(turn.get("content"), f"{where}.content")
    if content is None and role != "assistant":
        raise content_is_missing(where, role)
    return Message(
        role=role,
        content=content or "",
        reasoning_content=_text(turn.get("reasoning_content"), f"{where}.reasoning_content"),
        tool_calls=tuple(
            _parse_tool_call(call, f"{where}.tool_calls[{at}]")
            for at, call in enumerate(cast("Sequence[object]", calls))
        ),
        tool_call_id=_text(turn.get("tool_call_id"), f"{where}.tool_call_id"),
    )


def _parse_tool_call(call: object, where: str) -> ToolCall:
    if not isinstance(call, Mapping):
        raise _wrong(where, call, "an object")
    fields = cast("Mapping[str, object]", call)
    function = fields.get("function", fields)
    if not isinstance(function, Mapping):
        raise _wrong(f"{where}.function", function, "an object")
    named = cast("Mapping[str, object]", function)
    name = _text(named.get("name"), f"{where}.function.name")
    if not name:
        raise _wrong(f"{where}.function.name", name, "a name")
    return ToolCall(
        name=name,
        arguments=_parse_arguments(named.get("arguments"), f"{where}.function.arguments"),
        id=_text(fields.get("id"), f"{where}.id") or "",
    )


def _parse_arguments(arguments: object, where: str) -> Mapping[str, object]:
    """Return the arguments by name; OpenAI's wire carries them as a text of JSON."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise _wrong(where, arguments, "an object in JSON") from error
    if not isinstance(arguments, Mapping):
        raise _wrong(where, arguments, "an object in JSON")
    return cast("Mapping[str, object]", arguments)


def _text(value: object, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _wrong(where, value, "text")


def _wrong(where: str, value: object, expected: str) -> RequestError:
    return RequestError(f"`{where}` is {value!r}; it must be {expected}.", param=where, code="invalid_value")
