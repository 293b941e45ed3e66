"""Ollama's chat and generate: what clients send, what they get, and how it becomes the model's words and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, NotRequired, TypeAlias, cast

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.core.infill import Gap
from qwenstack.core.messages import Message, ToolCall
from qwenstack.core.outputs import CompletionOutput, FinishReason, GeneratedToolCall
from qwenstack.core.sampling_params import MAX_SEED, MAX_STOP_STRINGS
from qwenstack.serving.service import UsageTally
from qwenstack.serving.wire.effort import budget_of
from qwenstack.serving.wire.errors import ErrorAnswer
from qwenstack.serving.wire.sampling import MAX_TOKENS, OnlyTrue, StopString, WireModel, given
from qwenstack.serving.wire.tools import MAX_TOOLS, new_call_id, schema_grammar, tools_grammar, whole_arguments

MAX_MESSAGES = 1024

NoImages: TypeAlias = Annotated[list[str], Field(max_length=0)] | None
Format: TypeAlias = Literal["", "json"] | dict[str, object] | None


class Options(WireModel):
    """How to sample; what says how a model is to be loaded is accepted and ignored: the operator has decided."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-1, le=MAX_SEED)
    """-1: a new one each time."""
    num_predict: int | None = Field(None, ge=-2, le=MAX_TOKENS)
    """New tokens at most; below 0: as many as the context leaves."""
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)] | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    numa: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    vocab_only: bool | None = None
    logits_all: bool | None = None
    embedding_only: bool | None = None
    repeat_last_n: int | None = Field(None, ge=-1, le=-1)
    """-1, the whole context: repetition is looked at in all of it."""
    penalize_newline: OnlyTrue | None = None
    """A line end is a token like others."""
    mirostat: int | None = Field(None, ge=0, le=0)
    """0: off."""
    mirostat_tau: float | None = None
    """Says nothing without `mirostat`."""
    mirostat_eta: float | None = None
    """Says nothing without `mirostat`."""
    tfs_z: float | None = Field(None, ge=1, le=1)
    """1: off."""
    typical_p: float | None = Field(None, ge=1, le=1)
    """1: off."""

    def sampling_changes(self) -> dict[str, object]:
        """Return what the options give, by `SamplingParams` name.

        Raises:
            RequestError: no token may come.
        """
        if self.num_predict == 0:
            text = "`options.num_predict` is 0; it must be at least 1, or below 0 for as many as the context leaves."
            raise RequestError(text, param="options.num_predict", code="invalid_value")
        changes: dict[str, object] = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": None if self.seed == -1 else self.seed,
            "stop": self.stop,
            "max_tokens": None if self.num_predict is None or self.num_predict < 0 else self.num_predict,
        }
        return given(changes)


class RequestFields(WireModel):
    """What chat and generate share."""

    model: str = Field(min_length=1)
    """The id from `/v1/models`, or `default`; with or without `:latest`."""
    stream: bool | None = None
    """Send the answer line by line, as it comes; true where nothing is said."""
    format: Format = None
    """`json`, or a JSON schema that the answer fits."""
    options: Options | None = None
    """How to sample."""
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    """Whether a thinking model thinks; `low` gives it 1024 tokens for it, `medium` 4096, more has no limit."""
    keep_alive: float | str | None = None
    """Accepted and ignored: the model stays."""

    @property
    def wants_stream(self) -> bool:
        """Whether the answer comes line by line."""
        return self.stream is not False

    @property
    def wants_thinking(self) -> bool | None:
        """What the request says about thinking, None where it leaves it to the model."""
        return None if self.think is None else self.think is not False

    def sampling_changes(self) -> dict[str, object]:
        """Return what the request gives, by `SamplingParams` name."""
        changes = self.options.sampling_changes() if self.options else {}
        budget = None if isinstance(self.think, bool) else budget_of(self.think)
        return {**changes, "output_format": "thinking"} | given({"grammar": self._grammar(), "thinking_budget": budget})

    def _grammar(self) -> Grammar | None:
        if isinstance(self.format, dict):
            return schema_grammar("format", self.format)
        return Grammar(kind="json_object") if self.format == "json" else None


class FunctionCall(WireModel):
    """A call that the assistant made in an earlier turn."""

    name: str
    arguments: dict[str, object]
    index: int | None = None
    """Accepted and ignored."""


class ToolCallRequest(WireModel):
    """A call that the assistant made in an earlier turn."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Turn(WireModel):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    """What the assistant thought before it answered."""
    tool_calls: list[ToolCallRequest] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """What the assistant called."""
    tool_name: str | None = None
    """Accepted and ignored."""
    tool_call_id: str | None = None
    """On a `tool` turn: the call that it answers."""
    images: NoImages = None
    """This model reads none."""

    def to_message(self) -> Message:
        """Translate into the words of the core."""
        calls = [
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in self.tool_calls or ()
        ]
        return Message(
            role=self.role,
            content=self.content or "",
            reasoning_content=self.thinking,
            tool_calls=calls,
            tool_call_id=self.tool_call_id,
        )


class FunctionDefinition(WireModel):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, object] | None = None
    """A JSON schema; the arguments of calls fit it."""


class Tool(WireModel):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class OllamaChatRequest(RequestFields):
    """A conversation to go on with."""

    messages: list[Turn] | None = Field(None, max_length=MAX_MESSAGES, fail_fast=True)
    """The conversation so far, oldest turn first; without any the server says that the model is loaded."""
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that the model may call."""

    def to_tools(self) -> list[Mapping[str, object]] | None:
        """Return the tools as the template reads them."""
        tools = [cast("Mapping[str, object]", tool.model_dump(exclude_none=True)) for tool in self.tools or ()]
        return tools or None

    def sampling_changes(self) -> dict[str, object]:
        """Add chat's own fields to the shared ones.

        Raises:
            RequestError: two fields contradict each other.
        """
        changes, tools = super().sampling_changes(), self.to_tools()
        if tools is None:
            return changes
        if self.format:
            text = "`format` and `tools` are given; ask for one of the two at a time."
            raise RequestError(text, param="format", code="unsupported_parameter")
        return {
            **changes,
            "output_format": "chat",
            "grammar": tools_grammar(tools, required_tool=None, parallel=True),
        }


class OllamaGenerateRequest(RequestFields):
    """A prompt to answer."""

    prompt: str | None = None
    """What the user says; without it the server says that the model is loaded."""
    system: str | None = None
    """What the model is told before."""
    raw: bool | None = None
    """Go on with the prompt as plain text, without the chat template."""
    suffix: str | None = None
    """What comes after the answer: the model, if it is one for code, fills the gap between the prompt and this."""
    images: NoImages = None
    """This model reads none."""

    def to_gap(self) -> Gap | None:
        """Return the gap that is to be filled; None where there is none.

        Raises:
            RequestError: what else is asked for does not go with it.
        """
        if not self.suffix:
            return None
        if self.system or self.format or self.raw:
            text = "`suffix` is given, and `system`, `format` or `raw`; a gap is filled without them."
            raise RequestError(text, param="suffix", code="unsupported_parameter")
        return Gap(prefix=self.prompt or "", suffix=self.suffix)

    def sampling_changes(self) -> dict[str, object]:
        """Return what the request gives; nobody thinks in a gap."""
        return super().sampling_changes() | ({"output_format": "text"} if self.suffix else {})

    def to_messages(self) -> list[Message]:
        """Make a conversation of it."""
        system = [Message(role="system", content=self.system)] if self.system else []
        return [*system, Message(role="user", content=self.prompt or "")]


class Call(TypedDict):
    """The call of a function."""

    name: str
    arguments: dict[str, object]


class ToolCallAnswer(TypedDict):
    """A tool call that the model asks for."""

    id: str
    function: Call


class AnswerTurn(TypedDict):
    """The assistant's turn, or what came to it."""

    role: Literal["assistant"]
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallAnswer]]
    """A call that `num_predict` cut is left out."""


class Line(TypedDict):
    """What every line of an answer has; the last one's `done` is true, and it alone has the counts and times."""

    model: str
    created_at: str
    done: bool
    done_reason: NotRequired[Literal["stop", "length", "load"]]
    total_duration: NotRequired[int]
    """Nanoseconds, as the others."""
    load_duration: NotRequired[int]
    prompt_eval_count: NotRequired[int]
    """Tokens of the prompt."""
    prompt_eval_duration: NotRequired[int]
    eval_count: NotRequired[int]
    """Tokens of the answer."""
    eval_duration: NotRequired[int]


class OllamaChatLine(Line):
    """A line of an answer to a conversation, or the whole of it."""

    message: AnswerTurn


class OllamaGenerateLine(Line):
    """A line of an answer to a prompt, or the whole of it."""

    response: str
    thinking: NotRequired[str]


class ShowRequest(WireModel):
    """A model to describe."""

    model: str = ""
    """As in the other requests."""
    name: str = ""
    """What older clients call it."""
    verbose: bool | None = None
    """Accepted and ignored, as the next three: what is asked is the same as what is told."""
    system: str | None = None
    template: str | None = None
    options: Options | None = None

    def wanted(self) -> str:
        """Return the name.

        Raises:
            RequestError: there is none.
        """
        if not (self.model or self.name):
            raise RequestError("`model` is missing.", param="model", code="missing_required_parameter")
        return self.model or self.name


class VersionResponse(TypedDict):
    """The version of Ollama that has what this server has."""

    version: str


class OllamaErrorBody(TypedDict):
    """The body of every answer that is not a success."""

    error: str


def write_ollama_error(answer: ErrorAnswer) -> OllamaErrorBody:
    """Write Ollama's body."""
    return {"error": answer.detail["message"]}


def write_time(unix_s: float) -> str:
    """Write a moment as Ollama does."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def write_turn(answer: CompletionOutput) -> AnswerTurn:
    """Write a finished answer."""
    turn: AnswerTurn = {"role": "assistant", "content": answer.text}
    if answer.reasoning_text:
        turn["thinking"] = answer.reasoning_text
    calls = write_calls(answer.tool_calls)
    if calls:
        turn["tool_calls"] = calls
    return turn


def write_calls(calls: Sequence[GeneratedToolCall]) -> list[ToolCallAnswer]:
    """Write the calls that are complete."""
    written: list[ToolCallAnswer] = []
    for call in calls:
        arguments = whole_arguments(call)
        if arguments is not None:
            function: Call = {"name": call.name, "arguments": arguments}
            written.append({"id": new_call_id(), "function": function})
    return written


class Stopwatch:
    """Times of one answer, in nanoseconds."""

    def __init__(self, now_ns: int) -> None:
        """Start."""
        self._start = self._first = now_ns
        self._has_first = False

    def note(self, now_ns: int) -> None:
        """Note that something came."""
        if not self._has_first:
            self._first, self._has_first = now_ns, True

    def close(self, line: Line, reason: FinishReason | None, tally: UsageTally, now_ns: int) -> None:
        """Make a line the last one."""
        line["done"] = True
        line["done_reason"] = "length" if reason == "length" else "stop"
        line["total_duration"], line["load_duration"] = now_ns - self._start, 0
        line["prompt_eval_count"], line["prompt_eval_duration"] = tally.prompt_tokens, self._first - self._start
        line["eval_count"], line["eval_duration"] = tally.completion_tokens, now_ns - self._first
