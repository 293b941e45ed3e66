"""Keeps this server alive in the database, and calls whoever has to look after its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from qwenstack.storage import ServerLease

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def holding(lease: ServerLease, look_after: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Be alive until the block ends, and call `look_after` three times in each term of the lease."""
    await _renew_once(lease, look_after, was_failing=False)
    task = asyncio.create_task(_renew(lease, look_after))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        try:
            await asyncio.to_thread(lease.release)
        except Exception as error:  # noqa: BLE001 - others find out when the lease ends
            logger.warning("This server is alive in the database for another %g s. %s", lease.lease_s, error)


async def _renew(lease: ServerLease, look_after: Callable[[], Awaitable[None]]) -> None:
    is_failing = False
    while True:
        await asyncio.sleep(lease.lease_s / 3)
        is_failing = await _renew_once(lease, look_after, was_failing=is_failing)


async def _renew_once(lease: ServerLease, look_after: Callable[[], Awaitable[None]], *, was_failing: bool) -> bool:
    try:
        await asyncio.to_thread(lease.renew)
        await look_after()
    except Exception as error:  # noqa: BLE001 - a lease that nobody renews gives the work to others
        if not was_failing:
            logger.error("What this server keeps for its tenants is not looked after. %s", error)
        return True
    return False
