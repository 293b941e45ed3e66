"""OpenAI's batches: what clients send, the lines of their files, and the objects that they get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import msgspec
from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.serving.wire.chat import ChatCompletion
from qwenstack.serving.wire.completions import Completion
from qwenstack.serving.wire.embeddings import EmbeddingList
from qwenstack.serving.wire.errors import ErrorBody, ErrorDetail
from qwenstack.serving.wire.responses import Metadata, OutputTokensDetails, ResponseObject
from qwenstack.serving.wire.sampling import ID_PATTERN, WireModel
from qwenstack.storage import NO_TOKENS, BatchStatus, BatchTokens, StoredBatch

MAX_CUSTOM_ID_CHARS = 512

LineAnswer = ChatCompletion | Completion | ResponseObject | EmbeddingList
"""What an endpoint answers a line with."""


class BatchRequest(WireModel):
    """A file of requests to be answered when there is time."""

    input_file_id: str = Field(max_length=64, pattern=ID_PATTERN)
    """A file with the purpose `batch`: one request in each line."""
    endpoint: str = Field(max_length=64)
    """Where all of them would go to."""
    completion_window: Literal["24h"]
    """What is not answered by then is not answered."""
    metadata: Metadata | None = None
    """Kept with the batch."""


class BatchLine(WireModel):
    """A line of an input file."""

    custom_id: str = Field(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)
    """The client's label; every line has its own."""
    method: Literal["POST"]
    url: str
    """The endpoint of the batch."""
    body: dict[str, object]
    """What would be sent there."""


class LineError(TypedDict):
    """What is wrong with an input file."""

    code: str
    line: int | None
    """The first line is 1."""
    message: str
    param: str | None


class LineErrors(TypedDict):
    """Everything that is wrong with an input file, as far as it was looked for."""

    object: Literal["list"]
    data: list[LineError]


class RequestCounts(TypedDict):
    """How far a batch is."""

    total: int
    completed: int
    failed: int


class BatchInputDetails(TypedDict):
    """Where the tokens of the requests came from."""

    cached_tokens: int


class BatchUsage(TypedDict):
    """Counted tokens of what was answered."""

    input_tokens: int
    input_tokens_details: BatchInputDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchObject(TypedDict):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: LineErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    """None: it was answered before they were counted."""
    metadata: dict[str, str]


class BatchList(TypedDict):
    """Some batches."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class LineResponse(TypedDict):
    """What the endpoint answered."""

    status_code: int
    request_id: str
    body: object


class LineFailure(TypedDict):
    """Why the endpoint was not asked."""

    code: str
    message: str


class AnsweredLine(TypedDict):
    """A line of an output file or an error file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineFailure | None


def write_batch(batch: StoredBatch) -> BatchObject:
    """Write a batch in OpenAI's words."""

    def at(status: BatchStatus) -> int | None:
        return batch.times[status] // 1000 if status in batch.times else None

    errors = None if batch.errors is None else msgspec.json.decode(batch.errors, type=list[LineError])
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": None if errors is None else {"object": "list", "data": errors},
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at_ms // 1000,
        "expires_at": batch.expires_at_ms // 1000,
        "in_progress_at": at("in_progress"),
        "finalizing_at": at("finalizing"),
        "completed_at": at("completed"),
        "failed_at": at("failed"),
        "expired_at": at("expired"),
        "cancelling_at": at("cancelling"),
        "cancelled_at": at("cancelled"),
        "request_counts": {
            "total": batch.num_total,
            "completed": batch.num_completed,
            "failed": batch.num_failed,
        },
        "usage": None if batch.tokens is None else _write_usage(batch.tokens),
        "metadata": msgspec.json.decode(batch.metadata, type=dict[str, str]),
    }


def _write_usage(tokens: BatchTokens) -> BatchUsage:
    return {
        "input_tokens": tokens.input_tokens,
        "input_tokens_details": {"cached_tokens": tokens.cached_tokens},
        "output_tokens": tokens.output_tokens,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning_tokens},
        "total_tokens": tokens.input_tokens + tokens.output_tokens,
    }


def count_tokens(answer: LineAnswer) -> BatchTokens:
    """Return what an answer took, as it says itself."""
    usage = answer["usage"]
    if usage is None:
        return NO_TOKENS
    if "input_tokens" in usage:
        return BatchTokens(
            input_tokens=usage["input_tokens"],
            cached_tokens=usage["input_tokens_details"]["cached_tokens"],
            output_tokens=usage["output_tokens"],
            reasoning_tokens=usage["output_tokens_details"]["reasoning_tokens"],
        )
    if "completion_tokens" in usage:
        return BatchTokens(
            input_tokens=usage["prompt_tokens"],
            cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            output_tokens=usage["completion_tokens"],
            reasoning_tokens=usage["completion_tokens_details"]["reasoning_tokens"],
        )
    return BatchTokens(input_tokens=usage["prompt_tokens"])


def write_answer(custom_id: str, *, request_id: str, status: int, body: object) -> str:
    """Write the line of an answer."""
    line: AnsweredLine = {
        "id": f"batch_req_{request_id}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": body},
        "error": None,
    }
    return msgspec.json.encode(line).decode()


def write_unanswered(custom_id: str, *, request_id: str, code: str, message: str) -> str:
    """Write the line of a request that nobody came to."""
    line: AnsweredLine = {
        "id": f"batch_req_{request_id}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return msgspec.json.encode(line).decode()


def line_error(line: int | None, detail: ErrorDetail) -> LineError:
    """Say what is wrong with a line."""
    code = detail["code"] or detail["type"]
    return {"code": code, "line": line, "message": detail["message"], "param": detail["param"]}


def error_body(detail: ErrorDetail) -> Mapping[str, object]:
    """Return the body of an answer that is an error."""
    body: ErrorBody = {"error": detail}
    return cast("Mapping[str, object]", body)
