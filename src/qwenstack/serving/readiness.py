"""Whether the server can answer, as every wire's probe tells it."""

from __future__ import annotations

from qwenstack.serving.connection import Lifetime
from qwenstack.serving.service import GenerationService

STATS_TIMEOUT_S = 2.0


async def why_not_ready(service: GenerationService, lifetime: Lifetime) -> str | None:
    """Return why requests would not be answered now; None where they would."""
    if lifetime.is_stopping:
        return "The server is shutting down."
    if await service.stats(timeout_s=STATS_TIMEOUT_S) is None:
        return f"The engine does not answer within {STATS_TIMEOUT_S:g} s."
    return None
