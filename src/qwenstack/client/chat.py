"""Conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, TypeVar, Unpack

from qwenstack.client.call import Call, StreamCall, post, reader, streamed
from qwenstack.client.endpoint import Endpoint, Group, StreamEndpoint
from qwenstack.client.transport import AsyncTransport, Transport
from qwenstack.client.types import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    FunctionCall,
    Message,
    MessageInput,
    ToolCall,
    ToolCallDelta,
)

TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)


class SamplingOptions(TypedDict, total=False):
    """What a request may say about sampling, in OpenAI's and vLLM's words (`docs/api.md`)."""

    model: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    n: int
    stop: str | Sequence[str]
    seed: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[str, float]
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: Sequence[int]
    priority: int
    cache_prompt: bool


class ChatOptions(SamplingOptions, total=False):
    """What a request may say about the answer."""

    tools: Sequence[Mapping[str, object]]
    tool_choice: str | Mapping[str, object]
    parallel_tool_calls: bool
    response_format: Mapping[str, object]
    enable_thinking: bool
    thinking_budget: int
    logprobs: bool
    top_logprobs: int


def describe_create(messages: Sequence[MessageInput], **options: Unpack[ChatOptions]) -> Call[ChatCompletion]:
    """Go on with a conversation, and return the whole answer."""
    return post("/v1/chat/completions", ChatCompletion, {"messages": list(messages), **options})


def describe_stream(
    messages: Sequence[MessageInput], **options: Unpack[ChatOptions]
) -> StreamCall[ChatChunk, ChatCompletion]:
    """Go on with a conversation, and bring the answer while it is made; open the result with `with`."""
    body = {"messages": list(messages), "stream_options": {"include_usage": True}, **options}
    return streamed(post("/v1/chat/completions", ChatCompletion, body), reader(ChatChunk), ChatCollector)


class ChatCollector:
    """Puts the pieces of answers together."""

    def __init__(self) -> None:
        """Start empty."""
        self._whole = ChatCompletion(id="", choices=[])
        self.is_complete = False

    def add(self, event: ChatChunk) -> str:
        """Take the next piece; return what it adds to the first answer's text."""
        whole = self._whole
        whole.id, whole.created, whole.model = event.id, event.created, event.model
        whole.usage = event.usage or whole.usage
        for choice in event.choices:
            self._add_choice(choice)
        return "".join(choice.delta.content or "" for choice in event.choices if choice.index == 0)

    def result(self) -> ChatCompletion:
        """Return what the same request gives without a stream."""
        return self._whole

    def _add_choice(self, piece: ChatChunkChoice) -> None:
        choice = self._choice(piece.index)
        message, delta = choice.message, piece.delta
        message.role = delta.role or message.role
        if delta.content:
            message.content = (message.content or "") + delta.content
        if delta.reasoning_content:
            message.reasoning_content = (message.reasoning_content or "") + delta.reasoning_content
        for call in delta.tool_calls:
            _add_call(message, call)
        if piece.logprobs is not None:
            before = (choice.logprobs and choice.logprobs.content) or []
            choice.logprobs = ChatLogprobs(content=[*before, *(piece.logprobs.content or ())])
        choice.finish_reason = piece.finish_reason or choice.finish_reason
        choice.stop_reason = choice.stop_reason if piece.stop_reason is None else piece.stop_reason
        if piece.finish_reason is not None and message.content is None and not message.tool_calls:
            message.content = ""

    def _choice(self, index: int) -> ChatChoice:
        choices = self._whole.choices
        while len(choices) <= index:
            choices.append(ChatChoice(index=len(choices), message=Message(role="assistant")))
        return choices[index]


def _add_call(message: Message, delta: ToolCallDelta) -> None:
    calls = message.tool_calls = message.tool_calls or []
    while len(calls) <= delta.index:
        calls.append(ToolCall(function=FunctionCall()))
    call = calls[delta.index]
    call.id = delta.id or call.id
    call.function.name += delta.function.name or ""
    call.function.arguments += delta.function.arguments or ""


class Chat(Group[TransportT]):
    """Conversations."""

    create = Endpoint(describe_create)
    stream = StreamEndpoint(describe_stream)
