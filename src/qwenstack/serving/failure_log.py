"""How failures of our own are logged: kind and place, never values."""

from __future__ import annotations

import logging

from qwenstack.logs import describe_failure

logger = logging.getLogger(__name__)


def log_failure(error: BaseException, request_id: str) -> None:
    """Log a failure and what caused it, without the messages, which may hold what a user wrote."""
    # Not `exc_info`: where somebody else set logging up, it would bring the messages.
    kind = type(error).__qualname__
    logger.error("Request %s failed: %s.", request_id, kind, extra={"exception": describe_failure(error)})
