"""Anthropic's messages: what clients send, what they get, and how it becomes the model's words and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Literal, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.core.messages import Message, ToolCall
from qwenstack.core.outputs import CompletionOutput, FinishReason, OutputDelta, ToolCallDelta
from qwenstack.core.sampling_params import MAX_STOP_STRINGS
from qwenstack.serving.service import DEFAULT_MODEL_NAME, UsageTally
from qwenstack.serving.wire.effort import budget_of
from qwenstack.serving.wire.errors import ErrorAnswer
from qwenstack.serving.wire.sampling import MAX_TOKENS, StopString, WireModel, given
from qwenstack.serving.wire.tools import MAX_TOOLS, new_call_id, schema_grammar, tools_grammar, whole_arguments

MAX_MESSAGES = 1024
MAX_BLOCKS = 1024
ERROR_MARK = "Error: "
"""Shown to the model before the result of a tool that failed: chat templates have no other place for that."""

_ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class CacheControl(WireModel):
    """Accepted and ignored: what was computed for earlier prompts is used wherever it can be."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(WireModel):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[object], Field(max_length=0)] | None = None
    """Accepted when empty."""


class ThinkingBlock(WireModel):
    """What the assistant thought in an earlier turn."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""
    """Accepted and ignored."""


class ToolUseBlock(WireModel):
    """A tool call that the assistant made in an earlier turn."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]
    cache_control: CacheControl | None = None
    toolset_name: str | None = None
    """Accepted and ignored."""
    caller: dict[str, object] | None = None
    """Accepted and ignored."""


class ToolResultBlock(WireModel):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = None
    is_error: bool | None = None
    """Shown to the model as a word before the content."""
    cache_control: CacheControl | None = None
    toolset_name: str | None = None
    """Accepted and ignored."""

    def to_message(self) -> Message:
        """Translate into the words of the core."""
        content = _text_of(self.content or "")
        return Message(
            role="tool", content=ERROR_MARK + content if self.is_error else content, tool_call_id=self.tool_use_id
        )


AssistantBlock: TypeAlias = Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]
UserBlock: TypeAlias = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]


class UserTurn(WireModel):
    """What the user, or a tool, says."""

    role: Literal["user"]
    content: str | Annotated[list[UserBlock], Field(min_length=1, max_length=MAX_BLOCKS, fail_fast=True)]
    """Text, or blocks of it and of tool results."""

    def to_messages(self) -> list[Message]:
        """Translate into the words of the core: each tool result, and each run of text between them, is a message."""
        if isinstance(self.content, str):
            return [Message(role="user", content=self.content)]
        messages: list[Message] = []
        for is_text, blocks in groupby(self.content, key=lambda block: isinstance(block, TextBlock)):
            if is_text:
                texts = [block.text for block in blocks if isinstance(block, TextBlock)]
                messages.append(Message(role="user", content="\n".join(texts)))
            else:
                messages += [block.to_message() for block in blocks if isinstance(block, ToolResultBlock)]
        return messages


class AssistantTurn(WireModel):
    """What the assistant said, thought and called."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)]

    def to_messages(self) -> list[Message]:
        """Translate into the words of the core."""
        if isinstance(self.content, str):
            return [Message(role="assistant", content=self.content)]
        thoughts = [block.thinking for block in self.content if isinstance(block, ThinkingBlock)]
        calls = [
            ToolCall(id=block.id, name=block.name, arguments=block.input)
            for block in self.content
            if isinstance(block, ToolUseBlock)
        ]
        return [
            Message(
                role="assistant",
                content="\n".join(block.text for block in self.content if isinstance(block, TextBlock)),
                reasoning_content="\n".join(thoughts) if thoughts else None,
                tool_calls=calls,
            )
        ]


class SystemTurn(WireModel):
    """What the model is told in the middle of the conversation."""

    role: Literal["system"]
    content: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)]

    def to_messages(self) -> list[Message]:
        """Translate into the words of the core."""
        return [Message(role="system", content=_text_of(self.content))]


Turn: TypeAlias = Annotated[UserTurn | AssistantTurn | SystemTurn, Field(discriminator="role")]


class ToolDefinition(WireModel):
    """A tool that the model may call."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    input_schema: dict[str, object]
    """A JSON schema; the input of calls fits it."""
    type: Literal["custom"] | None = None
    strict: bool | None = None
    """Accepted and ignored: input always fits the schema."""
    eager_input_streaming: bool | None = None
    """Accepted and ignored: input is streamed as it comes."""
    cache_control: CacheControl | None = None

    def as_function(self) -> Mapping[str, object]:
        """Return OpenAI's shape, which chat templates read."""
        described = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self.input_schema}}


class AutoChoice(WireModel):
    """The model decides whether to call."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyChoice(WireModel):
    """The model has to call a tool."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoice(WireModel):
    """The model has to call this tool."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(WireModel):
    """The model sees no tools."""

    type: Literal["none"]


class ThinkingOn(WireModel):
    """The model may think before it answers."""

    type: Literal["enabled"]
    display: Literal["summarized"] | None = None
    """Accepted and ignored: thinking is shown whole."""
    budget_tokens: int = Field(ge=1, le=MAX_TOKENS)
    """Tokens of thinking at most; at the limit the model is made to answer."""


class ThinkingAdaptive(WireModel):
    """The model may think as long as it likes."""

    type: Literal["adaptive"]
    display: Literal["summarized"] | None = None
    """Accepted and ignored: thinking is shown whole."""


class ThinkingOff(WireModel):
    """The model answers at once."""

    type: Literal["disabled"]


class OutputFormat(WireModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, object] = Field(alias="schema")
    """The schema."""


class OutputConfig(WireModel):
    """What the answer has to look like."""

    format: OutputFormat | None = None
    """Of the text; not together with tools."""
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """Tokens of thinking, where the request leaves them to it (`adaptive`): 1024, 4096, and from `high` no limit."""


class RequestMetadata(WireModel):
    """Accepted and ignored."""

    user_id: str | None = None


class PromptFields(WireModel):
    """What makes a prompt."""

    model: str = DEFAULT_MODEL_NAME
    """The id from `/v1/models`, or `default`."""
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    """The conversation so far, oldest turn first."""
    system: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = None
    """What the model is told before the conversation."""
    tools: list[ToolDefinition] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Tools that the model may call."""
    tool_choice: Annotated[AutoChoice | AnyChoice | ToolChoice | NoChoice, Field(discriminator="type")] | None = None
    """Whether the model may, must or must not call a tool; it may where nothing is said."""
    thinking: Annotated[ThinkingOn | ThinkingAdaptive | ThinkingOff, Field(discriminator="type")] | None = None
    """Whether a thinking model thinks; it does not where nothing is said."""
    output_config: OutputConfig | None = None
    """What the answer has to look like."""
    cache_control: CacheControl | None = None
    speed: Literal["standard"] | None = None
    """Accepted and ignored."""

    def to_messages(self) -> list[Message]:
        """Translate the conversation.

        Raises:
            RequestError: its last turn is the assistant's.
        """
        if isinstance(self.messages[-1], AssistantTurn):
            text = "The last of `messages` is the assistant's; answers that go on with one are not supported here."
            raise RequestError(text, param="messages", code="unsupported_parameter")
        messages = [message for turn in self.messages for message in turn.to_messages()]
        return [Message(role="system", content=_text_of(self.system)), *messages] if self.system else messages

    def to_tools(self) -> list[Mapping[str, object]] | None:
        """Return the tools as the template reads them."""
        if not self.tools or isinstance(self.tool_choice, NoChoice):
            return None
        return [tool.as_function() for tool in self.tools]

    @property
    def wants_thinking(self) -> bool:
        """Whether a thinking model thinks."""
        return isinstance(self.thinking, ThinkingOn | ThinkingAdaptive)


class CountTokensRequest(PromptFields):
    """A prompt to count."""


class CountTokensResponse(TypedDict):
    """The length of a prompt."""

    input_tokens: int


class MessageRequest(PromptFields):
    """A conversation to go on with."""

    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    """New tokens at most, thinking included."""
    stream: bool | None = None
    """Send events as the answer comes."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the most likely token each time; 1 samples from the model's own distribution."""
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    """Sample from the k most likely tokens; 0 from all."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the smallest set of tokens whose probability reaches this."""
    stop_sequences: list[StopString] | None = Field(None, max_length=MAX_STOP_STRINGS, fail_fast=True)
    """Strings that end the answer; they are not part of it."""
    metadata: RequestMetadata | None = None
    """Accepted and ignored."""
    service_tier: Literal["auto", "standard_only"] | None = None
    """Accepted and ignored."""

    def sampling_changes(self) -> dict[str, object]:
        """Return what the request gives, by `SamplingParams` name.

        Raises:
            RequestError: the demanded tool is not there.
        """
        tools = self.to_tools()
        changes: dict[str, object] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "stop": self.stop_sequences,
            "output_format": "thinking" if tools is None else "chat",
            "thinking_budget": self._thinking_budget,
            "grammar": self._grammar(tools),
        }
        return given(changes)

    @property
    def _thinking_budget(self) -> int | None:
        if isinstance(self.thinking, ThinkingOn):
            return self.thinking.budget_tokens
        if isinstance(self.thinking, ThinkingAdaptive) and self.output_config is not None:
            return budget_of(self.output_config.effort)
        return None

    def _grammar(self, tools: Sequence[Mapping[str, object]] | None) -> Grammar | None:
        text_format, choice = self.output_config and self.output_config.format, self.tool_choice
        if tools is None and isinstance(choice, AnyChoice | ToolChoice):
            text = "`tool_choice` demands a call, but there are no `tools`; give at least one."
            raise RequestError(text, param="tool_choice", code="invalid_value")
        if tools is None:
            return None if text_format is None else schema_grammar("output_config", text_format.schema_)
        if text_format is not None:
            text = "`output_config` has a format and `tools` are given; ask for one of the two at a time."
            raise RequestError(text, param="output_config", code="unsupported_parameter")
        required = "*" if isinstance(choice, AnyChoice) else None
        if isinstance(choice, ToolChoice):
            required = choice.name
            if required not in [tool.name for tool in self.tools or ()]:
                text = f"`tool_choice` names {required[:256]!r}, which is not in `tools`; name one of those."
                raise RequestError(text, param="tool_choice", code="invalid_value")
        one_call = choice is not None and not isinstance(choice, NoChoice) and choice.disable_parallel_tool_use
        return tools_grammar(tools, required_tool=required, parallel=not one_call, schema_field="input_schema")


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextContent(TypedDict):
    """Text of the answer."""

    type: Literal["text"]
    text: str


class ThinkingContent(TypedDict):
    """What the model thought before it answered."""

    type: Literal["thinking"]
    thinking: str
    signature: str
    """Empty."""


class ToolUseContent(TypedDict):
    """A tool call that the model asks for."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]


Content: TypeAlias = TextContent | ThinkingContent | ToolUseContent


class OutputTokensDetails(TypedDict):
    """What the answer's tokens were spent on."""

    thinking_tokens: int


class MessageUsage(TypedDict):
    """Counted tokens."""

    input_tokens: int
    """Of the prompt, without those that were computed for an earlier one."""
    cache_creation_input_tokens: int
    """0: keeping them costs nothing."""
    cache_read_input_tokens: int
    """Of the prompt, computed for an earlier one."""
    output_tokens: int
    output_tokens_details: OutputTokensDetails


class MessageAnswer(TypedDict):
    """A finished answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Content]
    """A call that `max_tokens` cut is left out."""
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class AnthropicErrorDetail(TypedDict):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(TypedDict):
    """The body of every answer that is not a success."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str
    """What the server's log calls the request; also in the header `request-id`."""


def write_anthropic_error(answer: ErrorAnswer) -> AnthropicErrorBody:
    """Write Anthropic's body."""
    kind = _ERROR_TYPES.get(answer.status, "api_error" if answer.status > 500 else "invalid_request_error")
    detail: AnthropicErrorDetail = {"type": kind, "message": answer.detail["message"]}
    return {"type": "error", "error": detail, "request_id": answer.request_id}


def write_content(answer: CompletionOutput) -> list[Content]:
    """Write a finished answer, block by block."""
    content: list[Content] = []
    if answer.reasoning_text:
        content.append({"type": "thinking", "thinking": answer.reasoning_text, "signature": ""})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    for call in answer.tool_calls:
        arguments = whole_arguments(call)
        if arguments is not None:
            content.append({"type": "tool_use", "id": new_call_id(), "name": call.name, "input": arguments})
    return content


def write_usage(tally: UsageTally) -> MessageUsage:
    """Write a tally in Anthropic's words."""
    return {
        "input_tokens": tally.prompt_tokens - tally.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tally.cached_tokens,
        "output_tokens": tally.completion_tokens,
        "output_tokens_details": {"thinking_tokens": tally.reasoning_tokens},
    }


def write_stop(
    reason: FinishReason | None, stop: int | str | None, stops: Sequence[str], *, has_calls: bool
) -> tuple[StopReason, str | None]:
    """Write why an answer ended, and the stop sequence that ended it."""
    if reason == "length":
        return "max_tokens", None
    if isinstance(stop, str) and stop in stops:
        return "stop_sequence", stop
    return ("tool_use" if has_calls else "end_turn"), None


class BlockWriter:
    """Writes what comes to an answer as blocks that open, grow and close, one at a time."""

    def __init__(self) -> None:
        """Start before the first block."""
        self._index = -1
        self._open: str | int | None = None
        """`text`, `thinking`, or the number of a call; None where no block is open."""
        self.calls_tools = False
        """Whether a call was written."""

    def write(self, delta: OutputDelta) -> list[dict[str, object]]:
        """Return the events that a step's news make.

        A step may bring the end of a call and what follows it: the open block comes first.
        """
        going_on: list[ToolCallDelta] = []
        new = list(delta.tool_calls)
        while new and new[0].index == self._open:
            going_on.append(new.pop(0))
        events = [event for call in going_on for event in self._write_call(call)]
        if delta.reasoning_text:
            events += self._switch("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            events.append(self._grow({"type": "thinking_delta", "thinking": delta.reasoning_text}))
        if delta.text:
            events += self._switch("text", {"type": "text", "text": ""})
            events.append(self._grow({"type": "text_delta", "text": delta.text}))
        return events + [event for call in new for event in self._write_call(call)]

    def close(self) -> list[dict[str, object]]:
        """Return the event that closes the open block, if there is one."""
        if self._open is None:
            return []
        return [{"type": "content_block_stop", "index": self._index}]

    def _write_call(self, call: ToolCallDelta) -> list[dict[str, object]]:
        opening: dict[str, object] = {"type": "tool_use", "id": new_call_id(), "name": call.name or "", "input": {}}
        self.calls_tools = True
        events = self._switch(call.index, opening)
        if call.arguments:
            events.append(self._grow({"type": "input_json_delta", "partial_json": call.arguments}))
        return events

    def _switch(self, kind: str | int, opening: dict[str, object]) -> list[dict[str, object]]:
        if self._open == kind:
            return []
        events = self.close()
        self._index, self._open = self._index + 1, kind
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": opening}]

    def _grow(self, delta: dict[str, object]) -> dict[str, object]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _text_of(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
