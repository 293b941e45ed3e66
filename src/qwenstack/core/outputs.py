"""What a generation gives back, whole (`RequestOutput`) or piece by piece (`OutputDelta`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from qwenstack.core.errors import CapacityError, EngineError, RequestError

OVERLOADED = "overloaded"
"""The `error_code` of what may be sent again in a moment."""
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
    """Of what this delta releases; fewer than were generated where a stop string cut some away."""
    logprobs: Sequence[TokenLogprob] | None = None
    """One for each of `token_ids`, where asked for."""
    num_generated_tokens: int = 0
    """Tokens that this step added to the answer, whether or not their text is shown."""
    num_reasoning_tokens: int = 0
    """Those of them that were spent on thinking, without its marks."""
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
    error_code: str | None = None
    """OpenAI's word for it, where the request is to blame, or `OVERLOADED`; None where the engine is."""
    error_param: str | None = None
    """The field to blame."""


def failed_delta(request_id: str, index: int, error: Exception) -> OutputDelta:
    """Return the last delta of an answer that came to no good end."""
    if isinstance(error, RequestError):
        return OutputDelta(
            request_id=request_id,
            index=index,
            finish_reason="error",
            error=str(error),
            error_code=error.code or "invalid_value",
            error_param=error.param,
        )
    if isinstance(error, CapacityError):
        return OutputDelta(
            request_id=request_id, index=index, finish_reason="error", error=str(error), error_code=OVERLOADED
        )
    return OutputDelta(
        request_id=request_id, index=index, finish_reason="error", error=f"{type(error).__name__}: {error}"
    )


def raise_if_failed(delta: OutputDelta) -> None:
    """Raise what a delta reports.

    Raises:
        RequestError: the request is to blame.
        CapacityError: there was no room for it.
        EngineError: the engine is to blame.
    """
    if delta.finish_reason != "error":
        return
    if delta.error_code == OVERLOADED:
        raise CapacityError(delta.error or "")
    if delta.error_code is not None:
        raise RequestError(delta.error or "", param=delta.error_param, code=delta.error_code)
    raise EngineError(delta.error or "The computation failed.")


@dataclass(slots=True, kw_only=True)
class GeneratedToolCall:
    """A tool call as the model wrote it."""

    name: str = ""
    arguments: str = ""
    """JSON; the model's own words, so it may be invalid, and where the answer was cut off it is unfinished."""


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One answer, finished once it has its `finish_reason`."""

    index: int
    text: str = ""
    reasoning_text: str = ""
    tool_calls: list[GeneratedToolCall] = field(default_factory=list[GeneratedToolCall])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] | None = None
    num_generated_tokens: int = 0
    num_reasoning_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def add(self, delta: OutputDelta) -> None:
        """Add what one step gave to this answer."""
        self.text += delta.text
        self.reasoning_text += delta.reasoning_text
        for call in delta.tool_calls:
            self._add_call(call)
        self.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            self.logprobs = [] if self.logprobs is None else self.logprobs
            self.logprobs.extend(delta.logprobs)
        self.num_generated_tokens += delta.num_generated_tokens
        self.num_reasoning_tokens += delta.num_reasoning_tokens
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index == len(self.tool_calls):
            self.tool_calls.append(GeneratedToolCall())
        call = self.tool_calls[delta.index]
        call.name = call.name if delta.name is None else delta.name
        call.arguments += delta.arguments


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A request: its prompt and its `n` answers."""

    request_id: str
    prompt: str | None
    """The prompt's text, None where token ids were given."""
    prompt_token_ids: Sequence[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0

    def add(self, delta: OutputDelta) -> None:
        """Add what one step gave to one of the answers."""
        self.outputs[delta.index].add(delta)
        if delta.index == 0:  # the others find what the first one computed
            self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOutput:
    """The vector of one text."""

    embedding: Sequence[float]
    """Of length one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequestOutput:
    """A text that was embedded, in vLLM's shape."""

    request_id: str
    prompt_token_ids: Sequence[int]
    outputs: EmbeddingOutput
