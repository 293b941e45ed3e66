"""Which request is being served, for everything that logs meanwhile: tasks and threads that it starts inherit it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """What a log line says of the request that it is about; an empty text is left out."""

    request_id: str
    """Made by the server; also in the answer's `X-Request-Id`, in the audit log and in the engine's ids."""
    tenant: str = ""
    key_id: str = ""
    client_request_id: str = ""
    """What the client calls it; a label, by which nothing is looked up."""
    trace_id: str = ""
    """Of the trace that its spans are in."""

    def fields(self) -> dict[str, str]:
        """Return what is known, by name."""
        names = ("request_id", "tenant", "key_id", "client_request_id", "trace_id")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value}


_current: ContextVar[RequestContext | None] = ContextVar("qwenstack_request", default=None)


@contextlib.contextmanager
def request_context(context: RequestContext) -> Generator[None]:
    """Serve this request within the block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current_request() -> RequestContext | None:
    """Return the request that is being served; None outside of any."""
    return _current.get()
