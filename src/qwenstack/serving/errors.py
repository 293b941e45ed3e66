"""Errors that only a server has; the HTTP answers to all errors are in `wire/errors.py`."""

from __future__ import annotations

from collections.abc import Mapping

from qwenstack.core.errors import CapacityError, RequestError


class UnknownModelError(RequestError):
    """The request names a model that is not served."""


class ForbiddenModelError(RequestError):
    """The caller's key is not for the model that the request names."""


class ServerStoppingError(CapacityError):
    """The server is shutting down and takes no more work."""


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
