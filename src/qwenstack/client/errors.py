"""What can go wrong between a program and a server.

ClientError
├── ConnectionFailedError           no answer came: the server is not there, or the connection broke
│   └── TimedOutError               it took longer than `timeout_s`
├── StatusError                     the server refused or failed; has status, code, param and request_id
│   ├── BadRequestError             400, 413, 415, 422: the request is wrong; `param` names the field
│   ├── AuthenticationError         401: no key, or a wrong one
│   ├── PermissionDeniedError       403: the key is not for this
│   ├── NotFoundError               404
│   ├── ConflictError               409
│   ├── RateLimitError              429: too much at once; `retry_after_s`
│   └── ServerError                 5xx
│       └── OverloadedError         503: no room at this moment; `retry_after_s`
├── BatchError                      a batch, or a request of it, has no answers; has a code
└── UnreadableAnswerError           what came is not what such a server sends
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from qwenstack.core.errors import QwenStackError

_MAX_SHOWN_CHARS = 300


class ClientError(QwenStackError):
    """Base of what a client raises."""


class ConnectionFailedError(ClientError):
    """No answer came, or it broke off."""


class TimedOutError(ConnectionFailedError):
    """The answer took too long."""


class UnreadableAnswerError(ClientError):
    """What came is not what such a server sends."""


class BatchError(ClientError):
    """A batch failed or was cancelled, or nobody came to one of its requests."""

    def __init__(self, message: str, *, code: str) -> None:
        """Keep what the server said."""
        super().__init__(message)
        self.code = code
        """A stable word for programs."""


class StatusError(ClientError):
    """The server answered with an error."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Keep what the server said."""
        super().__init__(message)
        self.status = status
        self.code = code
        """A stable word for programs."""
        self.param = param
        """The field of the request that is wrong."""
        self.request_id = request_id
        """What the server's log calls the request."""
        self.retry_after_s = retry_after_s
        """How long the server asks to wait, however long that is; None: it does not say."""


class BadRequestError(StatusError):
    """The request is wrong."""


class AuthenticationError(StatusError):
    """There is no key, or a wrong one."""


class PermissionDeniedError(StatusError):
    """The key is not for this."""


class NotFoundError(StatusError):
    """There is no such thing."""


class ConflictError(StatusError):
    """The thing is in a state that does not allow it."""


class RateLimitError(StatusError):
    """Too much at once."""


class ServerError(StatusError):
    """The server failed."""


class OverloadedError(ServerError):
    """There is no room at this moment."""


_BY_STATUS: Mapping[int, type[StatusError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    429: RateLimitError,
    503: OverloadedError,
}
_SERVER_FAULTS = 500


class _Detail(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    param: str | None = None


class _Body(msgspec.Struct):
    error: _Detail


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> StatusError:
    """Make an error of an answer that is not a success, whoever wrote it: a proxy between may have."""
    try:
        detail = msgspec.json.decode(body, type=_Body).error
    except msgspec.MsgspecError:
        text = " ".join(body.decode("utf-8", "replace").split())[:_MAX_SHOWN_CHARS]
        detail = _Detail(message=f"The server answered with status {status}: {text or 'nothing'}.")
    kind = _BY_STATUS.get(status) or (ServerError if status >= _SERVER_FAULTS else BadRequestError)
    return kind(
        detail.message,
        status=status,
        code=None if detail.code is None else str(detail.code),
        param=detail.param,
        request_id=headers.get("x-request-id"),
        retry_after_s=_read_retry_after(headers.get("retry-after")),
    )


def read_error_event(data: bytes) -> StatusError | None:
    """Return the error that a stream tells in the place of what should have come; None for an ordinary event."""
    if b'"error"' not in data:
        return None
    try:
        detail = msgspec.json.decode(data, type=_Body).error
    except msgspec.MsgspecError:
        return None
    code = None if detail.code is None else str(detail.code)
    return ServerError(detail.message, status=_SERVER_FAULTS, code=code, param=detail.param)


def _read_retry_after(text: str | None) -> float | None:
    """Read seconds; a date, which HTTP allows too, is not what our servers send."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if seconds >= 0 and math.isfinite(seconds) else None
