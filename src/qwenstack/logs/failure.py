"""How failures are written down: kind and place, never the messages, which may hold what a user wrote."""

from __future__ import annotations

import traceback

_MAX_CAUSES = 8


def describe_failure(error: BaseException) -> str:
    """Name an error's kind and the lines of code that it came through, then those of its causes."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < _MAX_CAUSES:
        parts.append(f"{type(cause).__qualname__}\n{''.join(traceback.format_tb(cause.__traceback__))}")
        cause = cause.__cause__
    return "caused by ".join(parts).rstrip()
