"""What an error is answered with over gRPC: the table of `wire/errors.py`, its statuses in gRPC's codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from grpc import StatusCode

from qwenstack.serving.wire.errors import answer_error

MAX_MESSAGE_CHARS = 500
"""A client reads 8 KB of trailing metadata (`grpc.max_metadata_size`), in which a Chinese character takes 9 bytes."""

_CODES: Mapping[int, StatusCode] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.ABORTED,
    413: StatusCode.RESOURCE_EXHAUSTED,
    422: StatusCode.FAILED_PRECONDITION,
    429: StatusCode.RESOURCE_EXHAUSTED,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusAnswer:
    """How a call ends that failed."""

    code: StatusCode
    message: str
    metadata: Mapping[str, str]
    """For programs: `error-code` and `error-param` with OpenAI's words, `retry-after` in seconds."""
    is_our_fault: bool


def answer_status(error: Exception, *, request_id: str) -> StatusAnswer:
    """Choose the answer to an error."""
    answer = answer_error(error, request_id=request_id)
    words = {
        "error-code": answer.detail["code"],
        "error-param": answer.detail["param"],
        "retry-after": answer.headers.get("Retry-After"),
    }
    return StatusAnswer(
        code=_CODES.get(answer.status, StatusCode.INTERNAL),
        message=_shortened(answer.detail["message"]),
        # A field's name can hold what a client wrote; metadata is printable ASCII.
        metadata={name: word for name, word in words.items() if word and word.isascii() and word.isprintable()},
        is_our_fault=answer.is_our_fault,
    )


def _shortened(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[: MAX_MESSAGE_CHARS - 1]}…"
