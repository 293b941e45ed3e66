"""When a call is sent again, and after how long; decided from values, done by the transports."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import httpx

from qwenstack.client.call import Call
from qwenstack.client.errors import ClientError, ConnectionFailedError, StatusError, TimedOutError, read_error

Result = TypeVar("Result")
Item = TypeVar("Item")

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""What happens before the first byte of a request leaves."""
_REFUSED_UNTOUCHED = frozenset({429, 503})
"""The server says that it did not begin, unless it says why it could not end."""
_MAYBE_DONE = "storage_unavailable"
"""The code of a 503 that may come when the work was done and could not be written down."""
_MAYBE_BEGUN = frozenset({500, 502, 504})
"""A proxy or a failure between: what became of the request is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient a client is."""

    max_retries: int = 2
    """After the first attempt; 0: none."""
    first_delay_s: float = 0.5
    """Doubled from each retry to the next, and shortened by chance down to its half, so that clients spread out."""
    max_delay_s: float = 8.0
    max_retry_after_s: float = 60.0
    """Where the server asks for a longer wait, its error is raised at once."""
    chance: Callable[[], float] = field(default=random.random, repr=False)

    def delay_s(self, call: Call[Any], failure: ClientError, cause: object, *, attempt: int) -> float | None:
        """Return how long to wait before the next attempt; None: there is none.

        Args:
            call: what was sent.
            failure: what came of it.
            cause: the library's own error, or the status.
            attempt: 0 for the first.
        """
        if attempt >= self.max_retries or not _may_repeat(call, failure, cause):
            return None
        asked_s = failure.retry_after_s if isinstance(failure, StatusError) else None
        if asked_s is not None:
            return asked_s if asked_s <= self.max_retry_after_s else None
        longest_s = min(self.max_delay_s, self.first_delay_s * 2**attempt)
        return longest_s * (1 - self.chance() / 2)


@dataclass(frozen=True, slots=True)
class Send:
    """Send this and bring the answer's head; its body too, unless it is streamed and a success."""

    call: Call[Any]
    is_streamed: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Save:
    """Write the body of a streamed answer to a file, which is there when it is whole, and not before."""

    response: httpx.Response
    path: Path


@dataclass(frozen=True, slots=True)
class Emit(Generic[Item]):
    """Hand this out."""

    item: Item


Step: TypeAlias = Send | Pause | Save
Outcome: TypeAlias = "httpx.Response | httpx.TransportError | None"
Flow: TypeAlias = Generator[Step, Outcome, Result]
"""Several steps, written once: whoever runs it does what it yields, with or without an event loop."""
Source: TypeAlias = Generator[Step | Emit[Item], Outcome, None]
"""A flow that brings items on its way."""


def exchange(call: Call[Result], policy: RetryPolicy) -> Flow[Result]:
    """Send a call until it succeeds or is not to be sent again."""
    response = yield from open_answer(call, policy, is_streamed=False)
    return call.read(response.content)


def save_answer(call: Call[Any], policy: RetryPolicy, path: Path) -> Flow[Path]:
    """Send a call and write its answer to a file, a piece at a time.

    Raises:
        ClientError: the answer does not begin well, or breaks off.
        OSError: the file cannot be written.
    """
    response = yield from open_answer(call, policy, is_streamed=True)
    outcome = yield Save(response, path)
    if isinstance(outcome, httpx.TransportError):
        raise broken_answer(outcome) from outcome
    return path


def open_answer(call: Call[Any], policy: RetryPolicy, *, is_streamed: bool) -> Flow[httpx.Response]:
    """Send a call until its answer begins well.

    Raises:
        ClientError: it does not.
    """
    attempt = 0
    while True:
        outcome = yield Send(call, is_streamed)
        assert outcome is not None, "a sent call has an outcome"
        if isinstance(outcome, httpx.Response):
            if outcome.is_success:
                return outcome
            failure: ClientError = read_error(outcome.status_code, outcome.headers, outcome.content)
            cause: object = outcome.status_code
        else:
            failure, cause = connection_failure(outcome), outcome
        delay_s = policy.delay_s(call, failure, cause, attempt=attempt)
        if delay_s is None:
            raise failure from (outcome if isinstance(outcome, Exception) else None)
        yield Pause(delay_s)
        attempt += 1


def connection_failure(error: httpx.TransportError) -> ConnectionFailedError:
    """Say in our words what happened to a connection."""
    if isinstance(error, httpx.TimeoutException):
        return TimedOutError(f"The server did not answer in time ({type(error).__name__}). Give a longer `timeout_s`.")
    text = str(error) or type(error).__name__
    return ConnectionFailedError(f"The connection failed: {text}. Is the server running, and is `base_url` right?")


def broken_answer(error: httpx.TransportError | None = None) -> ConnectionFailedError:
    """Say what happened to an answer that had begun."""
    if isinstance(error, httpx.TimeoutException):
        return connection_failure(error)
    reason = f" ({error})" if error is not None and str(error) else ""
    return ConnectionFailedError(f"The answer broke off before its end{reason}.")


def _may_repeat(call: Call[Any], failure: ClientError, cause: object) -> bool:
    if isinstance(cause, int):
        if isinstance(failure, StatusError) and failure.code == _MAYBE_DONE and not call.is_repeatable:
            return False
        return cause in _REFUSED_UNTOUCHED or (call.is_repeatable and call.method == "GET" and cause in _MAYBE_BEGUN)
    return isinstance(cause, _NEVER_SENT) or call.is_repeatable
