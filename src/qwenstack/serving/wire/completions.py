"""OpenAI's text completions: what clients send and what they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NotRequired, cast

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.core.infill import Gap
from qwenstack.core.sampling_params import MAX_LOGPROBS
from qwenstack.serving.service import MAX_ANSWERS
from qwenstack.serving.wire.logprobs import CompletionLogprobs
from qwenstack.serving.wire.sampling import SamplingFields, Usage, WireFinishReason

DEFAULT_MAX_TOKENS = 16
"""OpenAI's; a plain completion has no natural end."""
MAX_PROMPT_TOKENS = 1 << 20

TokenIds = Annotated[
    list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_PROMPT_TOKENS, fail_fast=True)
]


class CompletionRequest(SamplingFields):
    """A text to go on with."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_ANSWERS, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_ANSWERS, fail_fast=True)]
    )
    """A text, token ids, or a list of either."""
    echo: bool | None = None
    """Return the prompt before the completion."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Report each token's log-probability and so many of the likeliest."""
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    """Only 1; use `n` for several answers."""
    suffix: str | None = None
    """What comes after the completion: the model, if it is one for code, fills the gap between one text and this."""

    def prompts(self) -> Sequence[str | Sequence[int]]:
        """Return the prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [cast("list[int]", self.prompt)]
        return cast("list[str] | list[list[int]]", self.prompt)

    def to_gap(self) -> Gap:
        """Return the gap between the prompt and the suffix.

        Raises:
            RequestError: the prompt is not one text, or is to be returned too.
        """
        if not isinstance(self.prompt, str) or self.echo:
            text = "`suffix` needs one text as `prompt`, and no `echo`."
            raise RequestError(text, param="suffix", code="invalid_value")
        return Gap(prefix=self.prompt, suffix=self.suffix or "")

    def sampling_changes(self) -> dict[str, object]:
        """Add the completions' own fields to the shared ones.

        Raises:
            RequestError: a field is wrong.
        """
        changes = super().sampling_changes()
        if self.logprobs is not None:
            changes["logprobs"] = self.logprobs
            if self.echo:
                changes["prompt_logprobs"] = self.logprobs
        return changes


class CompletionChoice(TypedDict):
    """One answer; those to prompt p have the indices p·n to p·n + n - 1."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: WireFinishReason
    stop_reason: NotRequired[int | str]
    """vLLM's: the stop string or token that ended it, or `repetition`; not there where the model ended by itself."""


class Completion(TypedDict):
    """A finished completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(TypedDict):
    """What came to one answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: WireFinishReason | None
    stop_reason: NotRequired[int | str]
    """vLLM's: the stop string or token that ended it, or `repetition`; not there where the model ended by itself."""


class CompletionChunk(TypedDict):
    """One event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage | None]
