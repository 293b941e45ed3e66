"""What a generation gives back, whole (`RequestOutput`) or piece by piece (`OutputDelta`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]
"""`stop`: end token or stop string; `length`: `max_tokens` or the context; `abort`: cancelled; `error`: a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """The log-probability of one token, and of the likeliest ones in its place."""

    token_id: int
    logprob: float
    """Natural logarithm, of the model's own distribution (before temperature and penalties)."""
    top: Sequence[tuple[int, float]] = ()
    """(token id, log-probability), likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """What one step added to one of an answer's tool calls."""

    index: int
    """Which of the answer's calls."""
    name: str | None = None
    """The function; on the first delta of a call."""
    arguments: str = ""
    """The next characters of the arguments' JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDelta:
    """What one step added to one answer of one request."""

    request_id: str
    index: int = 0
    """Which of the request's `n` answers."""
    text: str = ""
    """Of the answer proper: without thinking and tool calls, where those are parsed."""
    reasoning_text: str = ""
    """Of the thinking before the answer, without its marks."""
    tool_calls: Sequence[ToolCallDelta] = ()
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] | None = None
    """One for each of `token_ids`, where asked for."""
    finish_reason: FinishReason | None = None
    """Set on the last delta of an answer."""
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended it; None for the model's own end token."""
    num_cached_tokens: int = 0
    """Prompt tokens that were not computed again."""
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    """On the first delta, where asked for: one for each prompt token, None for the first."""
    error: str | None = None
    """What went wrong, where `finish_reason` is `error`."""


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One finished answer."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A finished request: its prompt and its `n` answers."""

    request_id: str
    prompt: str | None
    """The prompt's text, None where token ids were given."""
    prompt_token_ids: Sequence[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0
