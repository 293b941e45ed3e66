"""Keeps the ring of keys as the database has it: keys made or revoked elsewhere count here within a second."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from qwenstack.serving.identity import KeyRing
from qwenstack.storage import ApiKeys

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5


def refresh(ring: KeyRing, keys: ApiKeys) -> None:
    """Take the stored keys if they have changed.

    Raises:
        StorageError: the database cannot be read.
    """
    if keys.revision() != ring.revision:
        ring.take(keys.snapshot())


@contextlib.asynccontextmanager
async def watching(ring: KeyRing, keys: ApiKeys) -> AsyncGenerator[None]:
    """Look for changes until the block ends; while the database is away, the keys that are known stay good."""
    task = asyncio.create_task(_watch(ring, keys))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(ring: KeyRing, keys: ApiKeys) -> None:
    is_failing = False
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            await asyncio.to_thread(refresh, ring, keys)
        except Exception as error:  # noqa: BLE001 - a watch that ended would let revoked keys in for good
            if not is_failing:
                logger.error("API keys stay as they were; changes are not seen. %s", error)
            is_failing = True
        else:
            is_failing = False
