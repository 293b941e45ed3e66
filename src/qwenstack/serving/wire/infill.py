"""Filling gaps for editors: llama.cpp's `/infill` and Mistral's `/v1/fim/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NotRequired, cast

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.infill import ContextFile, Gap
from qwenstack.core.outputs import FinishReason
from qwenstack.core.sampling_params import MAX_SEED, MAX_STOP_STRINGS
from qwenstack.serving.service import DEFAULT_MODEL_NAME
from qwenstack.serving.wire.sampling import MAX_TOKENS, StopString, WireModel, given

MAX_CONTEXT_FILES = 256
MAX_FIELDS = 64
_CONTEXT_NAME = "context"
"""For a piece of code that came without a name."""

Stops = StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)] | None


class ContextFileRequest(WireModel):
    """Other code that helps."""

    filename: str | None = Field(None, max_length=4096)
    text: str
    time: object = None
    """Accepted and ignored."""


class InfillRequest(WireModel):
    """A gap in a file, as llama.cpp's clients describe it."""

    input_prefix: str = ""
    """What stands before the gap, up to the line of the cursor."""
    input_suffix: str = ""
    """What stands after the gap."""
    prompt: str = ""
    """What stands in the line of the cursor, before it."""
    input_extra: list[ContextFileRequest] | None = Field(None, max_length=MAX_CONTEXT_FILES, fail_fast=True)
    """Other code, the most important last."""
    model: str = DEFAULT_MODEL_NAME
    """Empty stands for `default`."""
    stream: bool | None = None
    """Send events as the text comes."""
    n_predict: int | None = Field(None, ge=-2, le=MAX_TOKENS)
    """New tokens at most; 0 only reads the prompt, so that the next request finds it read; below 0: as many as fit."""
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=-1, le=1_000_000)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-1, le=MAX_SEED)
    """-1: a new one each time."""
    stop: Stops = None
    n_indent: int | None = Field(None, ge=0, le=MAX_TOKENS)
    """The answer ends before a line that is indented by less; the first line may."""
    t_max_predict_ms: int | None = Field(None, ge=0, le=MAX_TOKENS)
    """Time for the answer once it has a whole line; 0: no limit."""
    response_fields: list[str] | None = Field(None, max_length=MAX_FIELDS, fail_fast=True)
    """Answer with these fields alone; `timings/prompt_n` is a field of `timings`."""
    cache_prompt: bool | None = None
    """Whether what was computed for earlier prompts may be used, and this one kept for later ones; true by default."""
    t_max_prompt_ms: int | None = None
    """Accepted and ignored."""
    samplers: list[str] | None = None
    """Accepted and ignored."""
    id_slot: int | None = None
    """Accepted and ignored."""

    def to_gap(self) -> Gap:
        """Translate into the words of the core."""
        files = [ContextFile(path=file.filename or _CONTEXT_NAME, text=file.text) for file in self.input_extra or ()]
        return Gap(prefix=self.input_prefix + self.prompt, suffix=self.input_suffix, context=files)

    def sampling_changes(self) -> dict[str, object]:
        """Return what the request gives, by `SamplingParams` name."""
        changes: dict[str, object] = {
            "temperature": self.temperature,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": None if self.seed == -1 else self.seed,
            "stop": self.stop,
            "max_tokens": None if self.n_predict is None or self.n_predict < 0 else max(self.n_predict, 1),
        }
        return given(changes)


class Timings(TypedDict):
    """How long an answer took."""

    prompt_n: int
    """Tokens of the prompt that were computed."""
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class InfillAnswer(TypedDict):
    """What belongs into the gap; in a stream a piece of it, with the counts in the last one alone.

    Which fields there are is the request's to say (`response_fields`).
    """

    index: NotRequired[int]
    content: NotRequired[str]
    stop: NotRequired[bool]
    model: NotRequired[str]
    tokens_predicted: NotRequired[int]
    tokens_evaluated: NotRequired[int]
    """Of the prompt."""
    tokens_cached: NotRequired[int]
    """Of the prompt, computed for an earlier one."""
    has_new_line: NotRequired[bool]
    truncated: NotRequired[bool]
    """Whether something of the prompt was left out to make it fit."""
    stop_type: NotRequired[Literal["eos", "limit", "word"]]
    stopping_word: NotRequired[str]
    timings: NotRequired[Timings]


class FimRequest(WireModel):
    """A gap in a text, as Mistral's clients describe it."""

    prompt: str
    """What stands before the gap."""
    suffix: str | None = None
    """What stands after it."""
    model: str = DEFAULT_MODEL_NAME
    stream: bool | None = None
    """Send events as the text comes, then `[DONE]`."""
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """New tokens at most."""
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    random_seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Stops = None
    metadata: dict[str, object] | None = Field(None, max_length=16)
    """Accepted and ignored."""

    def sampling_changes(self) -> dict[str, object]:
        """Return what the request gives, by `SamplingParams` name."""
        changes: dict[str, object] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "max_tokens": self.max_tokens,
            "min_tokens": self.min_tokens,
            "seed": self.random_seed,
            "stop": self.stop,
        }
        return given(changes)


def write_timings(num_prompt: int, prompt_s: float, num_predicted: int, predicted_s: float) -> Timings:
    """Write how long an answer took."""
    return {
        "prompt_n": num_prompt,
        "prompt_ms": prompt_s * 1e3,
        "prompt_per_token_ms": prompt_s * 1e3 / max(num_prompt, 1),
        "prompt_per_second": num_prompt / max(prompt_s, 1e-9),
        "predicted_n": num_predicted,
        "predicted_ms": predicted_s * 1e3,
        "predicted_per_token_ms": predicted_s * 1e3 / max(num_predicted, 1),
        "predicted_per_second": num_predicted / max(predicted_s, 1e-9),
    }


class IndentGuard:
    """Lets a text out as it comes, up to the first line, not counting the very first, that is indented by less."""

    def __init__(self, least: int) -> None:
        """Guard an indent of so many characters."""
        self._least = least
        self._held = ""
        """Line ends and spaces after which nothing has come yet."""

    def push(self, text: str) -> tuple[str, bool]:
        """Return what may come out, and whether the guarded block is over."""
        if self._least == 0:
            return text, False
        text, self._held = self._held + text, ""
        passed = 0
        while (start := text.find("\n", passed)) >= 0:
            end = _after_space(text, start)
            if end == len(text):
                self._held = text[start:]
                return text[:start], False
            line = text.rfind("\n", start, end)
            if end - line - 1 < self._least:
                return text[:line], True
            passed = end
        return text, False

    def finish(self) -> str:
        """Return what was held back to the end."""
        held, self._held = self._held, ""
        return held


def write_stop_type(
    reason: FinishReason | None, stop: int | str | None, stops: Sequence[str]
) -> tuple[Literal["eos", "limit", "word"], str]:
    """Write why an answer ended, and the word that ended it."""
    if reason != "stop":
        return "limit", ""
    return ("word", stop) if isinstance(stop, str) and stop in stops else ("eos", "")


def select_fields(answer: InfillAnswer, fields: Sequence[str]) -> dict[str, object]:
    """Return the fields that a client asked for; a path into an inner object is a name of its own."""
    selected: dict[str, object] = {}
    for path in fields:
        value: object = answer
        for name in path.split("/"):
            value = cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None
        if value is not None:
            selected[path] = value
    return selected


def _after_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start
