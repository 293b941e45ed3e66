"""How failures of our own are logged: kind and place, never values."""

from __future__ import annotations

import logging
import traceback

logger = logging.getLogger(__name__)


def log_failure(error: BaseException, request_id: str) -> None:
    """Log a failure and what caused it, without the messages, which may hold what a user wrote."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        parts.append(f"{type(cause).__qualname__}\n{''.join(traceback.format_tb(cause.__traceback__))}")
        cause = cause.__cause__
    logger.error("Request %s failed: %s", request_id, "caused by ".join(parts))
