"""OpenAI's responses: what clients send, and the object that they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NotRequired, TypeAlias, cast

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.core.request_options import MAX_PRIORITY, RequestOptions
from qwenstack.core.sampling_params import MAX_SEED
from qwenstack.serving.service import DEFAULT_MODEL_NAME, UsageTally
from qwenstack.serving.wire.chat import FunctionName, JsonObjectFormat, TextFormat
from qwenstack.serving.wire.effort import Effort, budget_of, thinks_at
from qwenstack.serving.wire.response_items import InputItem, InputItems, MessageItem
from qwenstack.serving.wire.sampling import ID_PATTERN, MAX_TOKENS, OnlyFalse, WireModel, given
from qwenstack.serving.wire.tools import MAX_TOOLS, schema_grammar, tools_grammar


class FunctionTool(WireModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, object] | None = None
    """A JSON schema."""
    strict: bool | None = None
    """Accepted and ignored: arguments always fit the schema."""

    def as_function(self) -> Mapping[str, object]:
        """Return what the chat template reads: OpenAI's older shape."""
        function = self.model_dump(exclude_unset=True, exclude={"type", "strict"})
        return {"type": "function", "function": function}


class HostedTool(WireModel, extra="allow"):
    """A tool that runs on OpenAI's own servers; always refused."""

    type: str


def _kind_of_tool(tool: object) -> str:
    kind = cast("dict[str, object]", tool).get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "hosted" if isinstance(kind, str) and kind != "function" else "function"


ResponseTool: TypeAlias = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[HostedTool, Tag("hosted")], Discriminator(_kind_of_tool)
]


class FunctionChoice(FunctionName):
    """A demand for a call of one function."""

    type: Literal["function"]


class SchemaFormat(WireModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, object] = Field(alias="schema")
    """The schema."""
    name: str = Field("", max_length=256)
    """Accepted and ignored."""
    description: str | None = None
    """Accepted and ignored."""
    strict: bool | None = None
    """Accepted and ignored: the answer always fits the schema."""


class TextConfig(WireModel):
    """How the text is to look."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None
    """Only the middle one there is."""


class ReasoningConfig(WireModel):
    """How much the model is to think."""

    effort: Effort | None = None
    """`none` switches thinking off; the others switch it on, with 256, 1024, 4096 tokens, and from `high` no limit."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Accepted and ignored: the thinking itself comes, as `reasoning_text`."""


class ResponseStreamOptions(WireModel):
    """How the stream is to be written."""

    include_obfuscation: OnlyFalse | None = None
    """Nothing is added to events."""


MetadataValue = Annotated[str, Field(max_length=512)]
Metadata: TypeAlias = Annotated[dict[Annotated[str, Field(max_length=64)], MetadataValue], Field(max_length=16)]


class ResponseRequest(WireModel):
    """A question, alone or as the next turn of a conversation that the server keeps."""

    model: str = DEFAULT_MODEL_NAME
    """The model's id, or `default`."""
    input: str | InputItems
    """A user's message, or the items of a conversation, oldest first."""
    instructions: str | None = None
    """A system message before everything; not kept for later turns."""
    previous_response_id: str | None = Field(None, max_length=64, pattern=ID_PATTERN)
    """Go on from this response: what it was asked and what it answered come before `input`."""
    store: bool | None = None
    """Keep the response; true where nothing is said and the server has a database."""
    background: bool | None = None
    """Answer at once and work on; only with `store`."""
    stream: bool | None = None
    """Send events while the answer comes."""
    stream_options: ResponseStreamOptions | None = None
    tools: list[ResponseTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that the model may call; the arguments of its calls fit their schemas."""
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    """`none` hides the tools from the model, `auto` leaves the choice to it, `required` or a name demands a call."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may hold several calls; true where nothing is said."""
    text: TextConfig | None = None
    """What the answer has to look like, thinking apart; not together with `tools`."""
    reasoning: ReasoningConfig | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """New tokens at most, thinking included."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the most likely token each time; 1 samples from the model's own distribution."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the smallest set of tokens whose probability reaches this."""
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    """Sample from the k most likely tokens; 0 from all."""
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    """The same seed, prompt and parameters give the same tokens."""
    priority: int | None = Field(None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """Lower runs earlier among your own requests; 0 where nothing is said."""
    metadata: Metadata | None = None
    """Kept with the response."""
    include: list[Literal["reasoning.encrypted_content"]] | None = Field(None, max_length=8)
    """Accepted and ignored: thinking comes as text, and can be sent back."""
    truncation: Literal["disabled"] | None = None
    """What is too long is refused."""
    service_tier: Literal["auto", "default"] | None = None
    """Accepted and ignored."""
    user: str | None = None
    """Accepted and ignored."""
    safety_identifier: str | None = None
    """Accepted and ignored."""
    prompt_cache_key: str | None = None
    """Accepted and ignored: what was computed for earlier prompts is used wherever it can be."""

    def input_items(self) -> list[InputItem]:
        """Return the input as items."""
        if isinstance(self.input, str):
            return [MessageItem(type="message", role="user", content=self.input)]
        return self.input

    def to_tools(self) -> list[Mapping[str, object]] | None:
        """Return the tools as the template reads them.

        Raises:
            RequestError: one is not a function.
        """
        for index, tool in enumerate(self.tools or ()):
            if isinstance(tool, HostedTool):
                text = (
                    f"`tools[{index}]` is of type {tool.type[:80]!r}, which runs on OpenAI's own servers; this server "
                    "runs no tools. Give tools of type 'function', and answer their calls yourself."
                )
                raise RequestError(text, param=f"tools[{index}].type", code="unsupported_parameter")
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.as_function() for tool in self.tools if isinstance(tool, FunctionTool)]

    def wants_thinking(self) -> bool | None:
        """Return what the request says about thinking, None where it leaves it to the model."""
        return thinks_at(self._effort)

    def request_options(self, *, tenant: str, adapter: str | None) -> RequestOptions:
        """Return how the engine is to treat the request."""
        return RequestOptions(tenant=tenant, priority=self.priority or 0, adapter=adapter)

    def sampling_changes(self) -> dict[str, object]:
        """Return what the request gives, by `SamplingParams` name.

        Raises:
            RequestError: two fields contradict each other.
        """
        tools = self.to_tools()
        changes: dict[str, object] = {
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "output_format": "thinking" if tools is None else "chat",
            "thinking_budget": budget_of(self._effort),
            "grammar": self._grammar(tools),
        }
        return given(changes)

    @property
    def _effort(self) -> Effort | None:
        return self.reasoning.effort if self.reasoning else None

    def _grammar(self, tools: Sequence[Mapping[str, object]] | None) -> Grammar | None:
        required = self._required_tool()
        text_format = self.text.format if self.text else None
        if text_format is None or isinstance(text_format, TextFormat):
            if tools is None:
                return None
            parallel = self.parallel_tool_calls is not False
            return tools_grammar(tools, required_tool=required, parallel=parallel, schema_field="parameters")
        if tools is not None:
            text = f"`text.format` is {text_format.type!r} and `tools` are given; ask for one of the two at a time."
            raise RequestError(text, param="text.format", code="unsupported_parameter")
        if isinstance(text_format, JsonObjectFormat):
            return Grammar(kind="json_object")
        return schema_grammar("text.format", text_format.schema_)

    def _required_tool(self) -> str | None:
        """Return the function that has to be called, `*` for any, None where no call is demanded."""
        choice = self.tool_choice
        names = [tool.name for tool in self.tools or () if isinstance(tool, FunctionTool)]
        if choice is None or choice in ("none", "auto"):
            return None
        if not names:
            text = "`tool_choice` demands a call, but there are no `tools`; give at least one."
            raise RequestError(text, param="tool_choice", code="invalid_value")
        if not isinstance(choice, FunctionChoice):
            return "*"
        if choice.name not in names:
            text = f"`tool_choice` names {choice.name[:256]!r}, which is not in `tools`; name one of those."
            raise RequestError(text, param="tool_choice", code="invalid_value")
        return choice.name


ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
OutputItem: TypeAlias = dict[str, object]
"""An item that the model made: of type `message`, `reasoning` or `function_call`."""


ResponseErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


class ResponseError(TypedDict):
    """Why a response failed."""

    code: ResponseErrorCode
    message: str
    type: str
    """The word that the same error has as `code` on the other endpoints; `server_restarted` where the server died."""


class IncompleteDetails(TypedDict):
    """Why an answer was cut."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(TypedDict):
    """Where the prompt's tokens came from."""

    cached_tokens: int
    cache_write_tokens: int
    """0: keeping them costs nothing."""


class OutputTokensDetails(TypedDict):
    """What the answer's tokens were spent on."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Counted tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(TypedDict):
    """A response, finished or not."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, object]
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, object]
    tool_choice: object
    tools: list[dict[str, object]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class DeletedResponse(TypedDict):
    """A response that is no more."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemList(TypedDict):
    """What a response was asked."""

    object: Literal["list"]
    data: list[dict[str, object]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseEvent(TypedDict):
    """One event of a streamed response; which fields it has depends on its type, as OpenAI documents."""

    type: str
    sequence_number: int
    """Counts the events of a response, from 0."""
    response: NotRequired[ResponseObject]
    output_index: NotRequired[int]
    """Which item of the output."""
    item_id: NotRequired[str]
    item: NotRequired[OutputItem]
    content_index: NotRequired[int]
    """Which part of the item; there is one."""
    part: NotRequired[dict[str, object]]
    delta: NotRequired[str]
    text: NotRequired[str]
    logprobs: NotRequired[list[object]]
    """Empty."""
    name: NotRequired[str]
    arguments: NotRequired[str]
    code: NotRequired[str | None]
    """Of an `error`: as on the other endpoints."""
    message: NotRequired[str]
    param: NotRequired[str | None]


def write_response_usage(tally: UsageTally) -> ResponseUsage:
    """Write a tally in the words of this wire."""
    return {
        "input_tokens": tally.prompt_tokens,
        "input_tokens_details": {"cached_tokens": tally.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": tally.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": tally.reasoning_tokens},
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
    }
