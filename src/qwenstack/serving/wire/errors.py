"""OpenAI's error body, and the one table that says which of our errors gets which answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict

from qwenstack.core.errors import CapacityError, EngineError, EngineRestartingError, RequestError, StorageError
from qwenstack.core.outputs import OVERLOADED
from qwenstack.serving.errors import ForbiddenModelError, HttpError, RateLimitError, UnknownModelError
from qwenstack.serving.wire.validation import ValidationFailure, describe_failure

RETRY_AFTER_S = 1
"""A step takes tens of milliseconds and a queue of short answers empties in about this time."""
CLIENT_GONE_STATUS = 499
"""nginx's number for "the client left"; nobody reads the answer, but the metrics count it."""


class ErrorDetail(TypedDict):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every answer that is not a success, where a wire has no other of its own."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """What an error is answered with; each wire has a body of its own for it."""

    status: int
    detail: ErrorDetail
    request_id: str
    """What the server's log calls the request."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    is_our_fault: bool = False
    """Whether the log needs the details."""


WriteError = Callable[[ErrorAnswer], object]
"""Makes a wire's body of an answer."""


def write_openai_error(answer: ErrorAnswer) -> ErrorBody:
    """Write OpenAI's body."""
    return {"error": answer.detail}


def answer_error(error: Exception, *, request_id: str) -> ErrorAnswer:
    """Choose the answer to an error; what is not the caller's doing is told by the request id alone."""
    match error:
        case RequestError():
            return _answer_request_error(error, request_id)
        case ValidationFailure():
            return _answer(400, describe_failure(error), request_id)
        case CapacityError():
            return _answer_later(str(error), OVERLOADED, request_id)
        case EngineRestartingError():
            return _answer_later(str(error), "engine_restarting", request_id)
        case StorageError():
            text = f"What is kept cannot be reached now. Try again; the log has the cause under request {request_id}."
            return _answer_later(text, "storage_unavailable", request_id, is_our_fault=True)
        case ClientDisconnect():
            return ErrorAnswer(
                status=CLIENT_GONE_STATUS,
                detail=error_detail("The client left.", kind="invalid_request_error", code="client_gone"),
                request_id=request_id,
            )
        case HTTPException():
            return _answer_http_exception(error, request_id)
        case EngineError():
            text = f"The model failed on this request. Try again; the log has the cause under request {request_id}."
            return _answer_our_fault(text, "engine_error", request_id)
        case _:
            text = f"The server failed on this request. Its log has the cause under request {request_id}."
            return _answer_our_fault(text, "internal_error", request_id)


def error_detail(message: str, *, kind: str, code: str | None, param: str | None = None) -> ErrorDetail:
    """Say what went wrong, in OpenAI's words."""
    return {"message": message, "type": kind, "param": param, "code": code}


def _answer_request_error(error: RequestError, request_id: str) -> ErrorAnswer:
    match error:
        case HttpError():
            return _answer(error.status, error, request_id, headers=error.headers)
        case RateLimitError():
            return _answer_limited(error, request_id)
        case UnknownModelError() | RequestError(code="model_not_found"):  # or an adapter that was unloaded just now
            return _answer(404, error, request_id)
        case ForbiddenModelError():
            return _answer(403, error, request_id)
        case RequestError(code="quarantined"):
            return _answer(422, error, request_id)
        case _:
            return _answer(400, error, request_id)


def _answer_later(text: str, code: str, request_id: str, *, is_our_fault: bool = False) -> ErrorAnswer:
    detail = error_detail(text, kind="server_error", code=code)
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ErrorAnswer(status=503, detail=detail, request_id=request_id, headers=headers, is_our_fault=is_our_fault)


def _answer_our_fault(text: str, code: str, request_id: str) -> ErrorAnswer:
    detail = error_detail(text, kind="server_error", code=code)
    return ErrorAnswer(status=500, detail=detail, request_id=request_id, is_our_fault=True)


def _answer(
    status: int, error: RequestError, request_id: str, *, headers: Mapping[str, str] | None = None
) -> ErrorAnswer:
    detail = error_detail(str(error), kind="invalid_request_error", code=error.code, param=error.param)
    return ErrorAnswer(status=status, detail=detail, request_id=request_id, headers=headers or {})


def _answer_limited(error: RateLimitError, request_id: str) -> ErrorAnswer:
    """Say when to come back; OpenAI's `type` of such an error is the limit, or that the budget is spent."""
    kind = "insufficient_quota" if error.kind == "budget" else error.kind
    seconds = str(max(1, math.ceil(error.retry_after_s)))
    detail = error_detail(str(error), kind=kind, code=error.code)
    return ErrorAnswer(status=429, detail=detail, request_id=request_id, headers={"Retry-After": seconds})


def _answer_http_exception(error: HTTPException, request_id: str) -> ErrorAnswer:
    """Say in our words what the framework refuses."""
    detail = error_detail("The request was refused.", kind="invalid_request_error", code="refused")
    return ErrorAnswer(status=error.status_code, detail=detail, request_id=request_id, headers=error.headers or {})
