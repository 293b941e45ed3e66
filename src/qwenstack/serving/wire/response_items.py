"""The items of OpenAI's responses: what a conversation is made of, from clients and from the store, and as messages."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias, cast

from pydantic import BeforeValidator, Field, TypeAdapter

from qwenstack.core.messages import Message, Role, ToolCall
from qwenstack.serving.strict_json import parse_call_arguments
from qwenstack.serving.wire.sampling import WireModel

MAX_ITEMS = 1024
MAX_PARTS = 1024

Status = Literal["in_progress", "completed", "incomplete"]
_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class InputTextPart(WireModel):
    """A part of a message to the model; text is the only kind that it reads."""

    type: Literal["input_text"]
    text: str


class OutputTextPart(WireModel):
    """A part of a message that the model wrote in an earlier turn."""

    type: Literal["output_text"]
    text: str
    annotations: list[object] | None = None
    """Accepted and ignored."""
    logprobs: list[object] | None = None
    """Accepted and ignored."""


class ReasoningTextPart(WireModel):
    """Text that the model thought in an earlier turn."""

    type: Literal["reasoning_text"]
    text: str


TextPart: TypeAlias = Annotated[InputTextPart | OutputTextPart, Field(discriminator="type")]


class MessageItem(WireModel):
    """A turn of the conversation."""

    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    """Text, or parts of it, which are joined by line ends."""
    id: str | None = None
    """Accepted and ignored."""
    status: Status | None = None
    """Accepted and ignored."""
    phase: Literal["commentary", "final_answer"] | None = None
    """Accepted and ignored."""

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ReasoningItem(WireModel):
    """What the model thought in an earlier turn."""

    type: Literal["reasoning"]
    summary: list[object] | None = None
    """Accepted and ignored."""
    content: list[ReasoningTextPart] | None = Field(None, max_length=MAX_PARTS, fail_fast=True)
    encrypted_content: None = None
    """Not supported: nothing is encrypted here."""
    id: str | None = None
    """Accepted and ignored."""
    status: Status | None = None
    """Accepted and ignored."""


class FunctionCallItem(WireModel):
    """A call that the model made in an earlier turn."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    """A JSON object, as text."""
    id: str | None = None
    """Accepted and ignored."""
    status: Status | None = None
    """Accepted and ignored."""


class FunctionCallOutputItem(WireModel):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[InputTextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    id: str | None = None
    """Accepted and ignored."""
    status: Status | None = None
    """Accepted and ignored."""

    @property
    def text(self) -> str:
        """The output as one text."""
        return self.output if isinstance(self.output, str) else "\n".join(part.text for part in self.output)


def _take_for_a_message(item: object) -> object:
    """Name the type that clients may leave out."""
    if isinstance(item, dict) and "type" not in item:
        return {"type": "message", **cast("dict[str, object]", item)}
    return cast("object", item)


InputItem: TypeAlias = Annotated[
    Annotated[MessageItem | ReasoningItem | FunctionCallItem | FunctionCallOutputItem, Field(discriminator="type")],
    BeforeValidator(_take_for_a_message),
]
InputItems: TypeAlias = Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
_STORED_ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


def read_stored_items(document: object) -> list[InputItem]:
    """Read items that this server wrote, without calls that were cut: nobody could answer them."""
    items = _STORED_ITEMS.validate_python(document)
    return [item for item in items if not (isinstance(item, FunctionCallItem) and item.status != "completed")]


def write_items(items: Sequence[InputItem]) -> list[dict[str, object]]:
    """Write input items in the form in which they are kept and listed: each with an id, texts as parts."""
    return [_write_item(item) for item in items]


def new_item_id(prefix: str) -> str:
    """Make an item's id; clients' own are labels that nothing is found by."""
    return f"{prefix}_{secrets.token_hex(16)}"


def to_messages(
    instructions: str | None, items: Iterable[InputItem], *, earlier: Sequence[InputItem] = ()
) -> list[Message]:
    """Translate a conversation, with what was said `earlier`, into the words of the core.

    What the assistant thought, said and called between two other items is one message.

    Raises:
        RequestError: a call's arguments are JSON, but no object.
    """
    messages = [Message(role="system", content=instructions)] if instructions else []
    turn = _AssistantTurn()
    for index, item in enumerate((*earlier, *items), start=-len(earlier)):  # the request's own begin at 0
        if isinstance(item, MessageItem) and item.role == "assistant":
            turn.texts.append(item.text)
        elif isinstance(item, ReasoningItem):
            turn.thoughts += [part.text for part in item.content or ()]
        elif isinstance(item, FunctionCallItem):
            turn.calls.append(_read_call(item, f"input[{index}].arguments"))
        else:
            messages += turn.close()
            turn = _AssistantTurn()
            messages.append(_other_message(item))
    return messages + turn.close()


@dataclass(slots=True)
class _AssistantTurn:
    """What the assistant did since somebody else spoke."""

    thoughts: list[str] = field(default_factory=list[str])
    texts: list[str] = field(default_factory=list[str])
    calls: list[ToolCall] = field(default_factory=list[ToolCall])

    def close(self) -> list[Message]:
        if not (self.texts or self.calls):
            return []
        return [
            Message(
                role="assistant",
                content="\n".join(self.texts),
                reasoning_content="\n".join(self.thoughts) or None,
                tool_calls=tuple(self.calls),
            )
        ]


def _other_message(item: MessageItem | FunctionCallOutputItem) -> Message:
    if isinstance(item, FunctionCallOutputItem):
        return Message(role="tool", content=item.text, tool_call_id=item.call_id)
    return Message(role=_ROLES[item.role], content=item.text)


def _read_call(item: FunctionCallItem, param: str) -> ToolCall:
    return ToolCall(id=item.call_id, name=item.name, arguments=parse_call_arguments(item.arguments, param))


_ID_PREFIXES: Mapping[str, str] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
}


def _write_item(item: InputItem) -> dict[str, object]:
    written = item.model_dump(exclude_none=True)
    written |= {"id": new_item_id(_ID_PREFIXES[item.type]), "status": "completed"}
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        written["content"] = [{"type": kind, "text": item.content}]
    if isinstance(item, ReasoningItem):
        written.setdefault("summary", [])
    return written
