"""What a server answers. A field that this version does not know is passed over; one that is missing has a default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls"]
Json = Any
"""Whatever JSON can be, where its shape is the caller's or differs from item to item."""


class FunctionCall(msgspec.Struct, kw_only=True):
    """The call of a function that a model asks for."""

    name: str = ""
    arguments: str = ""
    """A JSON object, as text; unfinished where the answer was cut."""

    def read_arguments(self) -> dict[str, Json]:
        """Return the arguments.

        Raises:
            msgspec.DecodeError: the answer was cut within them.
        """
        return msgspec.json.decode(self.arguments, type=dict[str, Json])


class ToolCall(msgspec.Struct, kw_only=True):
    """A tool call; its `id` goes into the message that answers it."""

    id: str = ""
    type: str = "function"
    function: FunctionCall


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A turn; one that was received can be sent back among `messages` as it is."""

    role: str
    content: str | None = None
    reasoning_content: str | None = None
    """What the model thought before."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Where a prompt's tokens came from."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """What an answer's tokens were spent on."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Counted tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """The log-probability of each token, and of the likeliest ones in its place."""

    content: list[Json] | None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    """One of the answers to a conversation."""

    index: int = 0
    message: Message
    finish_reason: str | None = None
    """`stop`, `length` or `tool_calls`."""
    stop_reason: int | str | None = None
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The answers to a conversation."""

    id: str
    created: int = 0
    model: str = ""
    choices: list[ChatChoice]
    usage: Usage | None = None

    @property
    def message(self) -> Message:
        """The first answer."""
        return self.choices[0].message

    @property
    def text(self) -> str:
        """The first answer's text, empty where it only calls tools."""
        return self.message.content or ""


class FunctionCallDelta(msgspec.Struct, kw_only=True):
    """The next piece of a call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, kw_only=True):
    """The next piece of one of an answer's tool calls."""

    index: int = 0
    id: str | None = None
    function: FunctionCallDelta = msgspec.field(default_factory=FunctionCallDelta)


class MessageDelta(msgspec.Struct, kw_only=True):
    """What is new of a turn."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] = msgspec.field(default_factory=list[ToolCallDelta])


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """What is new of one answer."""

    index: int = 0
    delta: MessageDelta
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """A piece of the answers to a conversation."""

    id: str
    created: int = 0
    model: str = ""
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One of the ways a text goes on; in a stream, a piece of it."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: Json = None


class Completion(msgspec.Struct, kw_only=True):
    """How texts go on; in a stream, a piece of that."""

    id: str
    created: int = 0
    model: str = ""
    choices: list[CompletionChoice]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The first one's text."""
        return self.choices[0].text


class Model(msgspec.Struct, kw_only=True):
    """A model that is served."""

    id: str
    created: int = 0
    owned_by: str = ""
    max_model_len: int | None = None
    parent: str | None = None
    """Of an adapter: the model that it changes."""


class ModelList(msgspec.Struct, kw_only=True):
    """All models."""

    data: list[Model]


class Tokens(msgspec.Struct, kw_only=True):
    """A text as the model reads it."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizedText(msgspec.Struct, kw_only=True):
    """The text of tokens."""

    content: str


class RenderedPrompt(msgspec.Struct, kw_only=True):
    """A conversation as the model reads it."""

    prompt: str


MessageInput = Message | Mapping[str, object]
"""A turn to send: one that was received, or a mapping with `role` and `content`."""
