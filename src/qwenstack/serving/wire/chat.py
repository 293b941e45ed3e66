"""OpenAI's chat completions: what clients send, what they get, and how it becomes the model's words and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, NotRequired, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.core.messages import Message, Role, ToolCall, content_is_missing
from qwenstack.core.outputs import CompletionOutput, FinishReason, OutputDelta, ToolCallDelta
from qwenstack.core.sampling_params import MAX_LOGPROBS
from qwenstack.serving.strict_json import parse_call_arguments
from qwenstack.serving.wire.effort import Effort, budget_of, thinks_at
from qwenstack.serving.wire.logprobs import ChatLogprobs
from qwenstack.serving.wire.sampling import MAX_TOKENS, OnlyFalse, SamplingFields, Usage, WireFinishReason, WireModel
from qwenstack.serving.wire.tools import MAX_TOOLS, new_call_id, schema_grammar, tools_grammar

MAX_MESSAGES = 1024
MAX_PARTS = 1024

Value = TypeVar("Value", bool, int)

ChatFinishReason = WireFinishReason | Literal["tool_calls"]

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
    """A JSON object, as text; empty: none. What is no JSON, as of a call that was cut off, is shown as `not_json`."""
    parsed_arguments: object = None
    """Accepted and ignored: OpenAI's client adds it to the answers that it parsed."""


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
    parsed: object = None
    """Accepted and ignored: OpenAI's client adds it to the answers that it parsed."""
    annotations: Annotated[list[object], Field(max_length=0)] | None = None
    """Accepted when empty."""
    audio: None = None
    """Not supported."""
    function_call: None = None
    """Not supported."""

    def to_message(self, index: int) -> Message:
        """Translate into the words of the core.

        Raises:
            RequestError: the content is missing, or a tool call's arguments are JSON, but no object.
        """
        if self.content is None and self.role != "assistant":
            raise content_is_missing(f"messages[{index}]", self.role)
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or ())
        calls = [
            ToolCall(
                id=call.id,
                name=call.function.name,
                arguments=parse_call_arguments(
                    call.function.arguments, f"messages[{index}].tool_calls[{number}].function.arguments"
                ),
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
    """Accepted and ignored: arguments always fit the schema."""


class Tool(WireModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition

    def as_function(self) -> Mapping[str, object]:
        """Return what the chat template reads."""
        return self.model_dump(exclude_unset=True, exclude={"function": {"strict"}})


class FunctionName(WireModel):
    """The name of a function in `tools`."""

    name: str


class NamedToolChoice(WireModel):
    """A demand for a call of one function."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(WireModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(WireModel):
    """A JSON object, whichever."""

    type: Literal["json_object"]


class JsonSchema(WireModel):
    """A JSON schema and its name."""

    name: str = Field("", max_length=256)
    """Accepted and ignored."""
    description: str | None = None
    """Accepted and ignored."""
    schema_: dict[str, object] = Field(alias="schema")
    """The schema."""
    strict: bool | None = None
    """Accepted and ignored: the answer always fits the schema."""


class JsonSchemaFormat(WireModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


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
    """Functions that the model may call; the arguments of its calls fit their schemas."""
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    """`none` hides the tools from the model, `auto` leaves the choice to it, `required` or a name demands a call."""
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    """What the answer has to look like, thinking apart; not together with `tools`."""
    chat_template_kwargs: ChatTemplateKwargs | None = None
    """What the model's chat template is told."""
    enable_thinking: bool | None = None
    """Let a thinking model think, or not."""
    thinking_budget: int | None = Field(None, ge=0, le=MAX_TOKENS)
    """Tokens of thinking at most; at the limit the model is made to answer."""
    reasoning_effort: Effort | None = None
    """OpenAI's word for both: `none` switches thinking off; the others switch it on, with 256, 1024, 4096 tokens, and
    from `high` no limit."""
    metadata: dict[str, str] | None = Field(None, max_length=16)
    """Accepted and ignored."""
    store: OnlyFalse | None = None
    """Nothing is stored."""
    service_tier: Literal["auto", "default"] | None = None
    """Accepted and ignored."""
    prompt_cache_key: str | None = None
    """Accepted and ignored: what was computed for earlier prompts is used wherever it can be."""
    safety_identifier: str | None = None
    """Accepted and ignored."""
    verbosity: Literal["medium"] | None = None
    """Only the middle one there is."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may hold several tool calls; true where nothing is said."""

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
        return [tool.as_function() for tool in self.tools]

    def wants_thinking(self) -> bool | None:
        """Return what the request says about thinking, None where it leaves it to the model.

        Raises:
            RequestError: it says two things.
        """
        inner = self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None
        switch = _agreed("enable_thinking", self.enable_thinking, "chat_template_kwargs.enable_thinking", inner)
        thinks = thinks_at(self.reasoning_effort)
        if switch is not None and thinks is not None and switch != thinks:
            text = f"`reasoning_effort` is {self.reasoning_effort!r}, `enable_thinking` is {switch}; give one of them."
            raise RequestError(text, param="reasoning_effort", code="invalid_value")
        if thinks is False and self.thinking_budget:
            text = "`reasoning_effort` is 'none', and there is a `thinking_budget`; give one of them."
            raise RequestError(text, param="reasoning_effort", code="invalid_value")
        return thinks if switch is None else switch

    def sampling_changes(self) -> dict[str, object]:
        """Add chat's own fields to the shared ones.

        Raises:
            RequestError: two fields contradict each other.
        """
        changes = super().sampling_changes()
        changes["output_format"] = "chat" if self._shows_tools else "thinking"
        budget = budget_of(self.reasoning_effort) if self.thinking_budget is None else self.thinking_budget
        if budget is not None:
            changes["thinking_budget"] = budget
        grammar = self._grammar()
        if grammar is not None:
            changes["grammar"] = grammar
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

    @property
    def _shows_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    def _grammar(self) -> Grammar | None:
        """Return what the answer has to look like."""
        required_tool = self._required_tool()
        tools, text_format = self.to_tools(), self.response_format
        if text_format is None or isinstance(text_format, TextFormat):
            if tools is None:
                return None
            parallel = self.parallel_tool_calls is not False
            return tools_grammar(tools, required_tool=required_tool, parallel=parallel)
        if tools is not None:
            text = f"`response_format` is {text_format.type!r} and `tools` are given; ask for one of the two at a time."
            raise RequestError(text, param="response_format", code="unsupported_parameter")
        if isinstance(text_format, JsonObjectFormat):
            return Grammar(kind="json_object")
        return schema_grammar("response_format", text_format.json_schema.schema_)

    def _required_tool(self) -> str | None:
        """Return the function that has to be called, `*` for any, None where no call is demanded."""
        choice, names = self.tool_choice, [tool.function.name for tool in self.tools or ()]
        if choice is None or choice in ("none", "auto"):
            return None
        if not names:
            text = "`tool_choice` demands a call, but there are no `tools`; give at least one."
            raise RequestError(text, param="tool_choice", code="invalid_value")
        if not isinstance(choice, NamedToolChoice):
            return "*"
        if choice.function.name not in names:
            text = f"`tool_choice` names {choice.function.name[:256]!r}, which is not in `tools`; name one of those."
            raise RequestError(text, param="tool_choice", code="invalid_value")
        return choice.function.name


class FunctionCall(TypedDict):
    """The call of a function."""

    name: str
    arguments: str
    """A JSON object, as text; unfinished where `finish_reason` is `length`."""


class ToolCallAnswer(TypedDict):
    """A tool call that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(TypedDict):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    """None where the turn has tool calls and no text."""
    refusal: None
    reasoning_content: NotRequired[str]
    """What the model thought before, where it did."""
    tool_calls: NotRequired[list[ToolCallAnswer]]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: NotRequired[int | str]
    """vLLM's: the stop string or token that ended it, or `repetition`; not there where the model ended by itself."""


class ChatCompletion(TypedDict):
    """A finished chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionCallDelta(TypedDict):
    """What came to the call of a function."""

    name: NotRequired[str]
    arguments: str


class ToolCallAnswerDelta(TypedDict):
    """What came to a tool call; the first of each has id, type and name."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionCallDelta


class AnswerDelta(TypedDict):
    """What came to the assistant's turn."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallAnswerDelta]]


class ChatChunkChoice(TypedDict):
    """What came to one answer."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: NotRequired[int | str]
    """vLLM's: the stop string or token that ended it, or `repetition`; not there where the model ended by itself."""


class ChatCompletionChunk(TypedDict):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


def write_message(answer: CompletionOutput) -> AnswerMessage:
    """Write a finished answer."""
    message: AnswerMessage = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning_text:
        message["reasoning_content"] = answer.reasoning_text
    if answer.tool_calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [
            {"id": new_call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.tool_calls
        ]
    return message


def write_deltas(delta: OutputDelta) -> list[AnswerDelta]:
    """Write what a step added, with one piece of one tool call in each: many clients read no more than the first."""
    written: AnswerDelta = {}
    if delta.reasoning_text:
        written["reasoning_content"] = delta.reasoning_text
    if delta.text:
        written["content"] = delta.text
    calls: list[AnswerDelta] = [{"tool_calls": [_write_call_delta(call)]} for call in _joined(delta.tool_calls)]
    if calls:
        calls[0] = {**written, **calls[0]}
    return calls or ([written] if written else [])


def _joined(deltas: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
    """Join the deltas of each call."""
    joined: dict[int, ToolCallDelta] = {}
    for delta in deltas:
        before = joined.get(delta.index)
        joined[delta.index] = delta if before is None else replace(before, arguments=before.arguments + delta.arguments)
    return list(joined.values())


def _write_call_delta(call: ToolCallDelta) -> ToolCallAnswerDelta:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function: FunctionCallDelta = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": new_call_id(), "type": "function", "function": function}


def chat_finish_reason(reason: FinishReason | None, *, has_calls: bool) -> ChatFinishReason:
    """Write how an answer ended: one that has tool calls and was not cut off ended for them."""
    written = wire_finish_reason(reason)
    return "tool_calls" if has_calls and written == "stop" else written


def wire_finish_reason(reason: FinishReason | None) -> WireFinishReason:
    """Write how an answer ended; the service raises where it did not end well."""
    return "length" if reason == "length" else "stop"


def _agreed(name: str, value: Value | None, other_name: str, other: Value | None) -> Value | None:
    if value is not None and other is not None and value != other:
        text = f"`{name}` is {value} and `{other_name}` is {other}; give one of them."
        raise RequestError(text, param=name, code="invalid_value")
    return value if value is not None else other
