"""Keeps the ring of keys as the database has it: keys made or revoked elsewhere count here within a second."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from qwenstack.serving.chores import repeating
from qwenstack.serving.identity import KeyRing
from qwenstack.storage import ApiKeys

LOOK_EVERY_S = 0.5


def refresh(ring: KeyRing, keys: ApiKeys) -> None:
    """Take the stored keys if they have changed.

    Raises:
        StorageError: the database cannot be read.
    """
    if keys.revision() != ring.revision:
        ring.take(keys.snapshot())


def watching(ring: KeyRing, keys: ApiKeys) -> AbstractAsyncContextManager[None]:
    """Look for changes until the block ends; while the database is away, the keys that are known stay good."""
    trouble = "API keys stay as they were; changes are not seen."
    return repeating(lambda: asyncio.to_thread(refresh, ring, keys), every_s=LOOK_EVERY_S, trouble=trouble)
