"""Keeps this server alive in the database, and calls whoever has to look after its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from qwenstack.serving.chores import repeating
from qwenstack.storage import ServerLease

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def holding(lease: ServerLease, look_after: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Be alive until the block ends, and call `look_after` three times in each term of the lease."""

    async def renew() -> None:
        await asyncio.to_thread(lease.renew)
        await look_after()

    trouble = "What this server keeps for its tenants is not looked after."
    try:
        async with repeating(renew, every_s=lease.lease_s / 3, trouble=trouble, comes_first=True):
            yield
    finally:
        try:
            await asyncio.to_thread(lease.release)
        except Exception as error:  # noqa: BLE001 - others find out when the lease ends
            logger.warning("This server is alive in the database for another %g s. %s", lease.lease_s, error)
