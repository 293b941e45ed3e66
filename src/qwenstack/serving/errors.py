"""Errors that only a server has; the HTTP answers to all errors are in `wire/errors.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from qwenstack.core.errors import CapacityError, RequestError


class UnknownModelError(RequestError):
    """The request names a model that is not served."""


class ForbiddenModelError(RequestError):
    """The caller's key is not for the model that the request names."""


class ServerStoppingError(CapacityError):
    """The server is shutting down and takes no more work."""


LimitKind = Literal["requests", "tokens", "concurrency", "budget"]


class RateLimitError(RequestError):
    """The caller has used what it may; the same request is welcome later.

    Args:
        message: what is used up, and how much there is of it.
        kind: which limit it is.
        retry_after_s: seconds until there is room for this request.
    """

    def __init__(self, message: str, *, kind: LimitKind, retry_after_s: float) -> None:
        """Keep the limit and the time beside the message."""
        super().__init__(message, code="insufficient_quota" if kind == "budget" else "rate_limit_exceeded")
        self.kind: LimitKind = kind
        self.retry_after_s = retry_after_s


class HttpError(RequestError):
    """The request is refused for a reason that HTTP has its own status for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the status and the headers of the answer."""
        super().__init__(message, param=param, code=code)
        self.status = status
        self.headers = headers or {}
