"""OpenAI's chat completions: what clients send, what they get, and how it becomes the model's words and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NotRequired, TypeVar, cast

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.core.messages import Message, Role, ToolCall
from qwenstack.core.outputs import FinishReason
from qwenstack.core.sampling_params import MAX_LOGPROBS
from qwenstack.serving.strict_json import parse_json
from qwenstack.serving.wire.logprobs import ChatLogprobs
from qwenstack.serving.wire.sampling import MAX_TOKENS, SamplingFields, Usage, WireFinishReason, WireModel

MAX_MESSAGES = 1024
MAX_PARTS = 1024
MAX_TOOLS = 128

Value = TypeVar("Value", bool, int)

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class TextPart(WireModel):
    """A part of a message; text is the only kind that this model reads."""

    type: Literal["text"]
    text: str


class FunctionCallRequest(WireModel):
    """A call that the assistant made in an earlier turn."""

    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCallRequest(WireModel):
    """A tool call that the assistant made in an earlier turn."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCallRequest
    index: int | None = None
    """Accepted and ignored."""


class ChatMessageRequest(WireModel):
    """One turn of the conversation.

    A client may send back the messages that it got; what the answer's shape has and the model does not read is
    accepted and ignored.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    """Text, or parts of it, which are joined by line ends; an assistant's may be missing."""
    reasoning_content: str | None = None
    """What the assistant thought before it answered."""
    tool_calls: list[ToolCallRequest] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """What the assistant called."""
    tool_call_id: str | None = None
    """On a `tool` message: the call that it answers."""
    name: str | None = None
    """Accepted and ignored."""
    refusal: str | None = None
    """Accepted and ignored."""
    annotations: Annotated[list[object], Field(max_length=0)] | None = None
    """Accepted when empty."""
    audio: None = None
    """Not supported."""
    function_call: None = None
    """Not supported."""

    def to_message(self, index: int) -> Message:
        """Translate into the words of the core.

        Raises:
            RequestError: the content is missing, or a tool call's arguments are no JSON object.
        """
        if self.content is None and self.role != "assistant":
            param = f"messages[{index}].content"
            raise RequestError(
                f"`{param}` is missing; a {self.role} message needs text.", param=param, code="invalid_value"
            )
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or ())
        calls = [
            ToolCall(
                id=call.id,
                name=call.function.name,
                arguments=_read_arguments(call, f"messages[{index}].tool_calls[{number}].function.arguments"),
            )
            for number, call in enumerate(self.tool_calls or ())
        ]
        return Message(
            role=_ROLES[self.role],
            content=content,
            reasoning_content=self.reasoning_content,
            tool_calls=calls,
            tool_call_id=self.tool_call_id,
        )


class FunctionDefinition(WireModel):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, object] | None = None
    """A JSON schema."""
    strict: bool | None = None
    """Accepted and ignored."""


class Tool(WireModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class TextFormat(WireModel):
    """Plain text, the only format so far."""

    type: Literal["text"]


class ChatTemplateKwargs(WireModel):
    """What the chat template may be told."""

    enable_thinking: bool | None = None


class ChatCompletionRequest(SamplingFields):
    """A conversation to go on with."""

    messages: list[ChatMessageRequest] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    """The conversation so far, oldest turn first."""
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """The newer name of `max_tokens`."""
    logprobs: bool | None = None
    """Report the log-probability of each token."""
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Report so many of the likeliest tokens."""
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Shown to the model; its calls come back as text in `content`."""
    tool_choice: Literal["none", "auto"] | None = None
    """`none` hides the tools from the model; forcing a call is not supported yet."""
    response_format: TextFormat | None = None
    """Plain text; JSON is not supported yet."""
    chat_template_kwargs: ChatTemplateKwargs | None = None
    """What the model's chat template is told."""
    enable_thinking: bool | None = None
    """Let a thinking model think, or not."""
    metadata: dict[str, str] | None = Field(None, max_length=16)
    """Accepted and ignored."""
    store: Literal[False] | None = None
    """Nothing is stored."""
    service_tier: Literal["auto", "default"] | None = None
    """Accepted and ignored."""
    parallel_tool_calls: bool | None = None
    """Accepted and ignored."""

    @property
    def max_tokens_field(self) -> str:
        """Which of the two names the request uses."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def to_messages(self) -> list[Message]:
        """Translate the conversation.

        Raises:
            RequestError: a message is wrong.
        """
        return [message.to_message(index) for index, message in enumerate(self.messages)]

    def to_tools(self) -> list[Mapping[str, object]] | None:
        """Return the tools as the template reads them."""
        if not self.tools or self.tool_choice == "none":
            return None
        unread = {"function": {"strict"}}
        return [
            cast("Mapping[str, object]", tool.model_dump(exclude_unset=True, exclude=unread)) for tool in self.tools
        ]

    def wants_thinking(self) -> bool | None:
        """Return what the request says about thinking, None where it leaves it to the model.

        Raises:
            RequestError: it says two things.
        """
        inner = self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None
        return _agreed("enable_thinking", self.enable_thinking, "chat_template_kwargs.enable_thinking", inner)

    def sampling_changes(self) -> dict[str, object]:
        """Add chat's own fields to the shared ones.

        Raises:
            RequestError: two fields contradict each other.
        """
        changes = super().sampling_changes()
        max_tokens = _agreed("max_tokens", self.max_tokens, "max_completion_tokens", self.max_completion_tokens)
        if max_tokens is not None:
            changes["max_tokens"] = max_tokens
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                "`top_logprobs` needs `logprobs` to be true.", param="top_logprobs", code="invalid_value"
            )
        if self.logprobs:
            changes["logprobs"] = self.top_logprobs or 0
        return changes


class AnswerMessage(TypedDict):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: WireFinishReason


class ChatCompletion(TypedDict):
    """A finished chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class AnswerDelta(TypedDict):
    """What came to the assistant's turn."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(TypedDict):
    """What came to one answer."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None
    finish_reason: WireFinishReason | None


class ChatCompletionChunk(TypedDict):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


def wire_finish_reason(reason: FinishReason | None) -> WireFinishReason:
    """Write how an answer ended; the service raises where it did not end well."""
    return "length" if reason == "length" else "stop"


def _read_arguments(call: ToolCallRequest, param: str) -> Mapping[str, object]:
    try:
        arguments = parse_json(call.function.arguments.encode())
    except RequestError as error:
        raise RequestError(f"`{param}`: {error}", param=param, code="invalid_value") from error
    if not isinstance(arguments, dict):
        raise RequestError(f"`{param}` is not a JSON object.", param=param, code="invalid_value")
    return cast("Mapping[str, object]", arguments)


def _agreed(name: str, value: Value | None, other_name: str, other: Value | None) -> Value | None:
    if value is not None and other is not None and value != other:
        text = f"`{name}` is {value} and `{other_name}` is {other}; give one of them."
        raise RequestError(text, param=name, code="invalid_value")
    return value if value is not None else other
