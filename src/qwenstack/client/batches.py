"""Batches: many requests in one file, answered when there is time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from qwenstack.client.call import Call, get, post, reader, segment
from qwenstack.client.endpoint import Endpoint, FlowEndpoint, Group, ItemsEndpoint, PagesEndpoint
from qwenstack.client.errors import BatchError, UnreadableAnswerError, read_error
from qwenstack.client.files import describe_content
from qwenstack.client.files import describe_create as describe_upload
from qwenstack.client.pages import Page, pages
from qwenstack.client.retry import Emit, Flow, Pause, RetryPolicy, Source, exchange, save_answer
from qwenstack.client.transport import AsyncTransport, Transport
from qwenstack.client.types import Json

TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)
Kind = TypeVar("Kind")

CHAT = "/v1/chat/completions"
_LAST_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})
_SUCCESS = 200


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many of a batch's requests are answered."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchInputDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Where the tokens of a batch's requests came from."""

    cached_tokens: int = 0


class BatchOutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What the tokens of a batch's answers were spent on."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Counted tokens of what a batch has answered."""

    input_tokens: int = 0
    input_tokens_details: BatchInputDetails | None = None
    output_tokens: int = 0
    output_tokens_details: BatchOutputDetails | None = None
    total_tokens: int = 0


class LineError(msgspec.Struct, kw_only=True):
    """What is wrong with an input file."""

    code: str = ""
    message: str = ""
    line: int | None = None
    """The first is 1."""
    param: str | None = None


class LineErrors(msgspec.Struct, kw_only=True):
    """Everything that was found wrong."""

    data: list[LineError] = msgspec.field(default_factory=list[LineError])


class Batch(msgspec.Struct, kw_only=True):
    """A batch, finished or not; times are Unix seconds."""

    id: str
    endpoint: str = ""
    status: str = ""
    """`validating`, `in_progress`, `finalizing`, `completed`, `failed`, `expired`, `cancelling` or `cancelled`."""
    input_file_id: str = ""
    output_file_id: str | None = None
    """What was answered with 200."""
    error_file_id: str | None = None
    """The other answers."""
    errors: LineErrors | None = None
    """Why it failed as a whole."""
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage | None = None
    """What was answered until now took so much; None: the server did not count."""
    created_at: int = 0
    expires_at: int | None = None
    completed_at: int | None = None
    metadata: dict[str, str] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.status in _LAST_STATUSES


class LineResponse(msgspec.Struct, kw_only=True):
    """What the endpoint answered."""

    status_code: int
    request_id: str | None = None
    body: Json = None


class LineFailure(msgspec.Struct, kw_only=True):
    """Why the endpoint was not asked."""

    code: str = ""
    message: str = ""


class BatchAnswer(msgspec.Struct, kw_only=True):
    """What became of one request of a batch."""

    custom_id: str
    response: LineResponse | None = None
    error: LineFailure | None = None

    @property
    def is_success(self) -> bool:
        """Whether it was answered with 200."""
        return self.response is not None and self.response.status_code == _SUCCESS

    def read(self, kind: type[Kind]) -> Kind:
        """Return the answer as a type of ours, such as `ChatCompletion`.

        Raises:
            StatusError: the endpoint refused or failed; the same error as without a batch.
            BatchError: it was not asked.
            UnreadableAnswerError: the answer is of another kind.
        """
        if self.response is None:
            error = self.error or LineFailure(message="There is no answer.")
            raise BatchError(error.message, code=error.code)
        if not self.is_success:
            headers = {"x-request-id": self.response.request_id} if self.response.request_id else {}
            raise read_error(self.response.status_code, headers, msgspec.json.encode(self.response.body))
        try:
            return msgspec.convert(self.response.body, kind)
        except msgspec.MsgspecError as error:
            raise UnreadableAnswerError(f"The answer is no {kind.__name__}: {error}.") from error


def describe_create(
    input_file_id: str, *, endpoint: str = CHAT, metadata: Mapping[str, str] | None = None
) -> Call[Batch]:
    """Have the requests of an uploaded file answered."""
    body = {"input_file_id": input_file_id, "endpoint": endpoint, "completion_window": "24h", "metadata": metadata}
    return post("/v1/batches", Batch, body, is_repeatable=False)


def describe_list(*, page_size: int = 100) -> Call[Page[Batch]]:
    """List your batches, all of them, the newest first, as many at a time as you say."""
    return pages("/v1/batches", Batch, lambda batch: batch.id, limit=page_size)


def describe_retrieve(batch_id: str) -> Call[Batch]:
    """Tell how far a batch is."""
    return get(f"/v1/batches/{segment(batch_id)}", Batch)


def describe_cancel(batch_id: str) -> Call[Batch]:
    """Stop a batch; what was answered until then is in its files."""
    return post(f"/v1/batches/{segment(batch_id)}/cancel", Batch, {})


def watch(policy: RetryPolicy, batch_id: str, *, poll_s: float = 1.0) -> Source[Batch]:
    """Yield a batch each time that its status or its counts are new, until it is over; ask every `poll_s` seconds."""
    last = None
    while True:
        batch = yield from exchange(describe_retrieve(batch_id), policy)
        if last is None or (batch.status, batch.request_counts) != (last.status, last.request_counts):
            yield Emit(batch)
        if batch.is_over:
            return
        last = batch
        yield Pause(poll_s)


def wait_for(
    policy: RetryPolicy,
    batch_id: str,
    *,
    poll_s: float = 1.0,
    on_progress: Callable[[Batch], None] | None = None,
) -> Flow[Batch]:
    """Wait until a batch is over, asking every `poll_s` seconds, and return it; `on_progress` hears of each look."""
    while True:
        batch = yield from exchange(describe_retrieve(batch_id), policy)
        if on_progress is not None:
            on_progress(batch)
        if batch.is_over:
            return batch
        yield Pause(poll_s)


def answers(policy: RetryPolicy, batch_id: str) -> Source[BatchAnswer]:
    """Yield what a batch that is over has answered: first what succeeded, then the rest, each as in its file.

    They pass through a temporary file, so that there may be more than the memory holds.
    """
    batch = yield from exchange(describe_retrieve(batch_id), policy)
    yield from _answers_of(policy, batch)


def run(
    policy: RetryPolicy,
    requests: Iterable[tuple[str, Mapping[str, object]]],
    *,
    endpoint: str = CHAT,
    metadata: Mapping[str, str] | None = None,
    poll_s: float = 1.0,
    on_progress: Callable[[Batch], None] | None = None,
) -> Source[BatchAnswer]:
    """Have requests answered as a batch, wait, and yield the answers, which say whose they are in `custom_id`.

    The answers stay on the server as well; `on_progress` is told the batch's id, by which `answers` finds them again.

    Args:
        policy: how patient to be; the client's.
        requests: a label and a body of each, such as a dictionary's `items()`; labels differ.
        endpoint: where all of them go.
        metadata: kept with the batch.
        poll_s: seconds from one look to the next.
        on_progress: hears of each look.

    Raises:
        BatchError: the batch failed, for what is wrong with the requests; or it was cancelled, after what was answered.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"
        _write_requests(path, requests, endpoint)
        file = yield from exchange(describe_upload(path), policy)
    begun = yield from exchange(describe_create(file.id, endpoint=endpoint, metadata=metadata), policy)
    batch = yield from wait_for(policy, begun.id, poll_s=poll_s, on_progress=on_progress)
    yield from _answers_of(policy, batch)
    if batch.status in {"failed", "cancelled"}:
        raise _as_error(batch)


def _write_requests(path: Path, requests: Iterable[tuple[str, Mapping[str, object]]], endpoint: str) -> None:
    with path.open("wb") as file:
        for custom_id, body in requests:
            line = {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}
            file.write(msgspec.json.encode(line) + b"\n")


def _answers_of(policy: RetryPolicy, batch: Batch) -> Source[BatchAnswer]:
    read = reader(BatchAnswer)
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        with tempfile.TemporaryDirectory() as folder:
            path = yield from save_answer(describe_content(file_id), policy, Path(folder) / "answers.jsonl")
            with path.open("rb") as lines:
                for line in lines:
                    yield Emit(read(line))


def _as_error(batch: Batch) -> BatchError:
    errors = batch.errors.data if batch.errors is not None else []
    if not errors:
        counts = batch.request_counts
        text = f"Batch {batch.id} is {batch.status}; {counts.completed} of {counts.total} requests were answered."
        return BatchError(text, code=batch.status)
    place = "" if errors[0].line is None else f"line {errors[0].line}: "
    text = f"Batch {batch.id} was refused: {place}{errors[0].message} ({len(errors)} errors in all.)"
    return BatchError(text, code=errors[0].code)


class Batches(Group[TransportT]):
    """Requests that are answered when there is time."""

    create = Endpoint(describe_create)
    list = PagesEndpoint(describe_list)
    retrieve = Endpoint(describe_retrieve)
    cancel = Endpoint(describe_cancel)
    watch = ItemsEndpoint(watch)
    wait = FlowEndpoint(wait_for)
    answers = ItemsEndpoint(answers)
    run = ItemsEndpoint(run)
