"""Texts to go on with, and what they are to the model: tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, Unpack

from qwenstack.client.call import Call, StreamCall, post, reader, streamed
from qwenstack.client.chat import SamplingOptions
from qwenstack.client.endpoint import Endpoint, Group, StreamEndpoint
from qwenstack.client.transport import AsyncTransport, Transport
from qwenstack.client.types import (
    Completion,
    CompletionChoice,
    DetokenizedText,
    MessageInput,
    RenderedPrompt,
    Tokens,
)

TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


class CompletionOptions(SamplingOptions, total=False):
    """What a request may say about the answer."""

    echo: bool
    logprobs: int
    suffix: str


def describe_create(prompt: Prompt, **options: Unpack[CompletionOptions]) -> Call[Completion]:
    """Go on with a text or several, and return the whole."""
    return post("/v1/completions", Completion, {"prompt": prompt, **options})


def describe_stream(prompt: Prompt, **options: Unpack[CompletionOptions]) -> StreamCall[Completion, Completion]:
    """Go on with a text, and bring it while it is made; open the result with `with`."""
    body = {"prompt": prompt, "stream_options": {"include_usage": True}, **options}
    return streamed(post("/v1/completions", Completion, body), reader(Completion), CompletionCollector)


class CompletionCollector:
    """Puts the pieces of texts together."""

    def __init__(self) -> None:
        """Start empty."""
        self._whole = Completion(id="", choices=[])
        self.is_complete = False

    def add(self, event: Completion) -> str:
        """Take the next piece; return what it adds to the first text."""
        whole = self._whole
        whole.id, whole.created, whole.model = event.id, event.created, event.model
        whole.usage = event.usage or whole.usage
        for piece in event.choices:
            choice = self._choice(piece.index)
            choice.text += piece.text
            choice.finish_reason = piece.finish_reason or choice.finish_reason
            choice.stop_reason = choice.stop_reason if piece.stop_reason is None else piece.stop_reason
        return "".join(choice.text for choice in event.choices if choice.index == 0)

    def result(self) -> Completion:
        """Return what the same request gives without a stream, log-probabilities apart."""
        return self._whole

    def _choice(self, index: int) -> CompletionChoice:
        choices = self._whole.choices
        while len(choices) <= index:
            choices.append(CompletionChoice(index=len(choices)))
        return choices[index]


def describe_tokenize(
    text: str | None = None, *, messages: Sequence[MessageInput] | None = None, model: str | None = None
) -> Call[Tokens]:
    """Turn a text, or a conversation, into tokens."""
    body = {"prompt": text, "messages": None if messages is None else list(messages), "model": model}
    return post("/tokenize", Tokens, body)


def describe_detokenize(tokens: Sequence[int], *, model: str | None = None) -> Call[DetokenizedText]:
    """Turn tokens into text."""
    return post("/detokenize", DetokenizedText, {"tokens": list(tokens), "model": model})


def describe_apply_template(
    messages: Sequence[MessageInput], *, tools: Sequence[Mapping[str, object]] | None = None, model: str | None = None
) -> Call[RenderedPrompt]:
    """Write a conversation as the model reads it."""
    return post("/apply-template", RenderedPrompt, {"messages": list(messages), "tools": tools, "model": model})


class Completions(Group[TransportT]):
    """Texts to go on with."""

    create = Endpoint(describe_create)
    stream = StreamEndpoint(describe_stream)


class Tokenizer(Group[TransportT]):
    """Texts and tokens."""

    tokenize = Endpoint(describe_tokenize)
    detokenize = Endpoint(describe_detokenize)
    apply_template = Endpoint(describe_apply_template)
