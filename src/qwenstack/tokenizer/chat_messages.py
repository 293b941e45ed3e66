"""Conversations as chat templates see them: plain data in the shapes of OpenAI's chat API, checked on the way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from qwenstack.core.errors import RequestError
from qwenstack.core.messages import Message, ToolCall
from qwenstack.tokenizer.encoder import check_is_unicode

MAX_NESTING = 60
"""Depth of objects and lists within a tool's schema or a call's arguments."""


def chat_variables(
    messages: Sequence[Message], tools: Sequence[Mapping[str, object]] | None, options: Mapping[str, object]
) -> dict[str, object]:
    """Return a template's variables.

    Args:
        messages: the conversation.
        tools: OpenAI's function schemas; None and an empty list both mean that there are none.
        options: further variables, such as `enable_thinking`.

    Raises:
        RequestError: no messages, a value that is not JSON's, too deep a nesting, or a lone surrogate.
    """
    if not messages:
        raise RequestError("`messages` is empty; send at least one message.", param="messages", code="invalid_value")
    return {
        **cast("dict[str, object]", _plain(options, "chat_template_kwargs")),
        "messages": [_plain(_message_fields(message), "messages") for message in messages],
        "tools": _plain(tools, "tools") if tools else None,
    }


def _message_fields(message: Message) -> dict[str, object]:
    """Leave out what a message does not have: templates ask whether a field is defined."""
    fields: dict[str, object] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        fields["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        fields["tool_calls"] = [_tool_call_fields(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _tool_call_fields(call: ToolCall) -> dict[str, object]:
    return {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}


def _plain(value: object, param: str, depth: int = 0) -> object:
    """Rebuild a value out of exact JSON types, so that a template meets no method of anything else."""
    if depth > MAX_NESTING:
        raise RequestError(
            f"`{param}` nests objects and lists more than {MAX_NESTING} deep.", param=param, code="invalid_value"
        )
    if isinstance(value, str):
        check_is_unicode(value, param=param)
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {_plain(str(key), param): _plain(item, param, depth + 1) for key, item in entries.items()}
    if isinstance(value, Sequence):
        return [_plain(item, param, depth + 1) for item in cast("Sequence[object]", value)]
    raise RequestError(
        f"`{param}` has a value of type {type(value).__name__!r}; only what JSON can say is accepted.",
        param=param,
        code="invalid_value",
    )
