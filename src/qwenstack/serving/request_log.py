"""A line in the log for each request: what was called and what came of it; no address, path, query or body."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from qwenstack.serving.identity import Access

logger = logging.getLogger(__name__)

_LABEL = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
_FIRST_REFUSAL = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a request, in words of ours alone: nobody can grow a table or a log with names of his own."""

    method: str
    """HTTP's, or `gRPC`."""
    route: str
    """The route's template, not the path; of gRPC the method."""
    access: Access
    """What the route takes."""
    status: int | str
    """HTTP's number, or the name of gRPC's code."""
    duration_s: float

    @property
    def is_success(self) -> bool:
        """Whether it was answered as it was meant."""
        return self.status < _FIRST_REFUSAL if isinstance(self.status, int) else self.status == "OK"


def log_request(outcome: Outcome) -> None:
    """Write the line; probes, metrics and the page's files are for `debug`, as long as all is well with them."""
    is_ordinary = outcome.access is Access.INFERENCE or not outcome.is_success
    facts = {
        "method": outcome.method,
        "route": outcome.route,
        "status": outcome.status,
        "ms": round(outcome.duration_s * 1000, 1),
    }
    logger.log(logging.INFO if is_ordinary else logging.DEBUG, "request", extra=facts)


def known_method(given: str) -> str:
    """Return a method of HTTP, or `OTHER`."""
    return given if given in _METHODS else "OTHER"


def client_label(given: str) -> str:
    """Return what a client calls its request, if it is a plain word; otherwise nothing."""
    return given if _LABEL.fullmatch(given) else ""
