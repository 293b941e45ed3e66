"""Responses: answers that the server keeps, so that the next turn need only name the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, TypeVar, Unpack

import msgspec

from qwenstack.client.call import Call, StreamCall, delete, get, post, reader, segment, streamed
from qwenstack.client.endpoint import Endpoint, FlowEndpoint, Group, StreamEndpoint
from qwenstack.client.errors import ServerError, UnreadableAnswerError
from qwenstack.client.retry import Flow, Pause, RetryPolicy, exchange
from qwenstack.client.transport import AsyncTransport, Transport
from qwenstack.client.types import Json

TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)
_SERVER_FAULTS = 500
_WORKING = frozenset({"queued", "in_progress"})
_LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Counted tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class ResponseFailure(msgspec.Struct, kw_only=True):
    """Why a response failed."""

    code: str = ""
    message: str = ""


class Response(msgspec.Struct, kw_only=True):
    """A response, finished or not."""

    id: str
    status: str = ""
    """`in_progress`, `completed`, `incomplete`, `failed` or `cancelled`."""
    created_at: float = 0
    model: str = ""
    output: list[dict[str, Json]] = msgspec.field(default_factory=list[dict[str, Json]])
    """Items of type `message`, `reasoning` or `function_call`."""
    error: ResponseFailure | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    usage: ResponseUsage | None = None

    @property
    def text(self) -> str:
        """The text of all messages in it."""
        parts = [part for item in self.output if item["type"] == "message" for part in item["content"]]
        return "".join(part["text"] for part in parts if part["type"] == "output_text")

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.status not in _WORKING


class ResponseEvent(msgspec.Struct, kw_only=True):
    """What happens while a response is made; which fields it has depends on its type."""

    type: str
    sequence_number: int = 0
    response: Response | None = None
    item: dict[str, Json] | None = None
    output_index: int | None = None
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None


class DeletedResponse(msgspec.Struct, kw_only=True):
    """A response that is no more."""

    id: str
    deleted: bool


class ResponseOptions(TypedDict, total=False):
    """What a request may say, in OpenAI's words (`docs/api.md`)."""

    model: str
    instructions: str
    previous_response_id: str
    store: bool
    tools: Sequence[Mapping[str, object]]
    tool_choice: str | Mapping[str, object]
    parallel_tool_calls: bool
    text: Mapping[str, object]
    reasoning: Mapping[str, object]
    max_output_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    metadata: Mapping[str, str]


Input = str | Sequence[Mapping[str, object]]


def describe_create(
    input: Input,  # noqa: A002 - OpenAI's name
    *,
    background: bool | None = None,
    **options: Unpack[ResponseOptions],
) -> Call[Response]:
    """Answer a message or the items of a conversation; with `background`, return at once."""
    body = {"input": input, "background": background, **options}
    return post("/v1/responses", Response, body, is_repeatable=options.get("store") is False)


def describe_stream(
    input: Input,  # noqa: A002 - OpenAI's name
    **options: Unpack[ResponseOptions],
) -> StreamCall[ResponseEvent, Response]:
    """Answer, and bring the events while the response is made; open the result with `with`."""
    return streamed(describe_create(input, **options), reader(ResponseEvent), ResponseCollector)


def describe_retrieve(response_id: str) -> Call[Response]:
    """Read a response that was kept."""
    return get(f"/v1/responses/{segment(response_id)}", Response)


def describe_delete(response_id: str) -> Call[DeletedResponse]:
    """Forget a response."""
    return delete(f"/v1/responses/{segment(response_id)}", DeletedResponse)


def describe_cancel(response_id: str) -> Call[Response]:
    """Stop a response in the background; one that has ended stays as it is."""
    return post(f"/v1/responses/{segment(response_id)}/cancel", Response, {})


def wait_for(
    policy: RetryPolicy,
    response_id: str,
    *,
    poll_s: float = 1.0,
    on_progress: Callable[[Response], None] | None = None,
) -> Flow[Response]:
    """Wait until a response in the background is over, asking every `poll_s` seconds, and return it."""
    while True:
        response = yield from exchange(describe_retrieve(response_id), policy)
        if on_progress is not None:
            on_progress(response)
        if response.is_over:
            return response
        yield Pause(poll_s)


class ResponseCollector:
    """Waits for the response itself among its events."""

    def __init__(self) -> None:
        """Start empty."""
        self._response: Response | None = None
        self.is_complete = False

    def add(self, event: ResponseEvent) -> str:
        """Take the next event; return what it adds to the text.

        Raises:
            ServerError: it says that the response failed.
        """
        if event.type == "error":
            raise ServerError(event.message or "", status=_SERVER_FAULTS, code=event.code, param=event.param)
        self._response = event.response or self._response
        self.is_complete = event.type in _LAST_EVENTS
        return (event.delta or "") if event.type == "response.output_text.delta" else ""

    def result(self) -> Response:
        """Return the response as its last event has it."""
        if self._response is None:
            raise UnreadableAnswerError("The stream ended without a response.")
        return self._response


class Responses(Group[TransportT]):
    """Answers that the server keeps."""

    create = Endpoint(describe_create)
    stream = StreamEndpoint(describe_stream)
    retrieve = Endpoint(describe_retrieve)
    delete = Endpoint(describe_delete)
    cancel = Endpoint(describe_cancel)
    wait = FlowEndpoint(wait_for)
