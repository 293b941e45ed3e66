"""The fields that chat and text completions share: how to sample, and when to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError
from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.core.request_options import MAX_PRIORITY, RequestOptions
from qwenstack.core.sampling_params import (
    MAX_LOGIT_BIAS,
    MAX_N,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
)
from qwenstack.serving.service import DEFAULT_MODEL_NAME, UsageTally

MAX_TOKENS = 1 << 30
ID_PATTERN = r"^[\w-]+$"
"""Of ids that the server made; a NUL, which no text of PostgreSQL may hold, is not among them."""
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]

# Sent as they are under the same name in `SamplingParams`.
_PLAIN_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "seed",
    "n",
)


def _must_be_bool(value: object) -> object:
    if not isinstance(value, bool):  # to Python, 0 and 0.0 are the same as false
        raise PydanticKnownError("bool_type")
    return value


OnlyFalse: TypeAlias = Annotated[Literal[False], BeforeValidator(_must_be_bool)]
OnlyTrue: TypeAlias = Annotated[Literal[True], BeforeValidator(_must_be_bool)]


class WireModel(BaseModel):
    """Base of what clients send: types as they stand, and no field that is not listed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


def given(changes: Mapping[str, object]) -> dict[str, object]:
    """Return what a request says; None says nothing."""
    return {name: value for name, value in changes.items() if value is not None}


class StreamOptions(WireModel):
    """How a stream is to be written."""

    include_usage: bool | None = None
    """Send a last chunk with the token counts."""
    include_obfuscation: bool | None = None
    """Accepted and ignored."""


class SamplingFields(WireModel):
    """What a request may say about sampling; everything left out takes the server's default."""

    model: str = DEFAULT_MODEL_NAME
    """The id from `/v1/models`, or `default`."""
    stream: bool | None = None
    """Send the answer in server-sent events while it comes."""
    stream_options: StreamOptions | None = None
    """How the stream is to be written; only with `stream`."""
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """New tokens at most, prompt not counted."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the most likely token each time; 1 samples from the model's own distribution."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the smallest set of tokens whose probability reaches this."""
    n: int | None = Field(None, ge=1, le=MAX_N)
    """Independent answers to the same prompt."""
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)] | None = None
    """A string that ends the answer, or several; it is not part of the text."""
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    """The same seed, prompt and parameters give the same tokens."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Subtracted from the logits of tokens that are in the answer."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Subtracted from the logits times the count in the answer."""
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=MAX_LOGIT_BIAS)
    """Added to the logits, by token id as a string; -100 forbids a token, 100 forces it."""
    top_k: int | None = Field(None, ge=-1, le=1_000_000)
    """Sample from the k most likely tokens; 0 or -1 from all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    """Makes tokens seen in prompt or answer less likely, above 1."""
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    """The answer does not end before this many new tokens."""
    ignore_eos: bool | None = None
    """Go on past the model's own end."""
    stop_token_ids: list[int] | None = Field(None, max_length=MAX_LOGIT_BIAS, fail_fast=True)
    """Token ids that end the answer, besides the model's own."""
    skip_special_tokens: bool | None = None
    """Leave control tokens out of the text; true where nothing is said."""
    include_stop_str_in_output: bool | None = None
    """Keep the stop string in the text."""
    priority: int | None = Field(None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """Lower runs earlier among your own requests; 0 where nothing is said. Those that wait long move up."""
    cache_prompt: bool | None = None
    """Whether what was computed for earlier prompts may be used, and this one kept for later ones; true by default."""
    user: str | None = None
    """Accepted and ignored."""

    def request_options(self, *, tenant: str, adapter: str | None) -> RequestOptions:
        """Return how the engine is to treat the request."""
        return RequestOptions(
            tenant=tenant, priority=self.priority or 0, prefix_cache=self.cache_prompt is not False, adapter=adapter
        )

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_changes(self) -> dict[str, object]:
        """Return what the request gives, by `SamplingParams` name.

        Raises:
            RequestError: a key of `logit_bias` is no token id, or `stream_options` comes without `stream`.
        """
        if self.stream_options is not None and not self.stream:
            text = "`stream_options` needs `stream` to be true."
            raise RequestError(text, param="stream_options", code="invalid_value")
        changes: dict[str, object] = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        changes["top_k"] = max(self.top_k, 0) if self.top_k is not None else None
        changes["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        changes["logit_bias"] = _token_ids_of(self.logit_bias) if self.logit_bias else None
        changes["max_tokens"] = self.max_tokens
        return given(changes)


def _token_ids_of(logit_bias: dict[str, float]) -> dict[int, float]:
    for key in logit_bias:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            text = f'`logit_bias` has the key {key[:40]!r}; keys are token ids, such as "1234".'
            raise RequestError(text, param="logit_bias", code="invalid_value")
    return {int(key): bias for key, bias in logit_bias.items()}


class PromptTokensDetails(TypedDict):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """What the answers' tokens were spent on."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Counted tokens; those that a stop string cut away were generated too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


WireFinishReason = Literal["stop", "length"]


def usage_of(tally: UsageTally) -> Usage:
    """Write a tally in OpenAI's words."""
    return {
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tally.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": tally.reasoning_tokens},
    }
