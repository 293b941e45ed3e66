"""What a server keeps for its tenants, and what has to be done for it while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from qwenstack.serving.config import ServeConfig
from qwenstack.serving.lease import holding
from qwenstack.serving.responses import Responses
from qwenstack.serving.service import GenerationService
from qwenstack.storage import Database, ServerLease, StoredResponses

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 600.0
"""Retention is counted in days; a tenant that fills its quota does not do so in minutes."""


class Records:
    """Responses and what they are kept in."""

    def __init__(self, service: GenerationService, config: ServeConfig, database: Database | None) -> None:
        """Keep things in `database`; None: nothing is kept."""
        self._max_response_bytes = config.max_response_bytes
        self._lease = self._stored = None
        if database is not None:
            self._lease = ServerLease(database, lease_s=config.lease_s)
            self._stored = StoredResponses(database, retention_s=config.retention_days * 86_400)
        self.responses = Responses(service, self._stored, self._lease)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Look after what is kept until the block ends."""
        if self._lease is None or self._stored is None:
            yield
            return
        async with holding(self._lease, self.responses.look_after):
            sweeping = asyncio.create_task(_sweep(self._stored, self._max_response_bytes))
            try:
                yield
            finally:
                sweeping.cancel()
                await asyncio.wait([sweeping])
                await self.responses.stop()


async def _sweep(stored: StoredResponses, max_response_bytes: int) -> None:
    while True:
        try:
            num_removed = await asyncio.to_thread(stored.sweep, max_tenant_bytes=max_response_bytes)
            if num_removed:
                logger.info("%d stored responses have expired.", num_removed)
        except Exception as error:  # noqa: BLE001 - a sweep that ended would keep everything for good
            logger.error("What has expired is not removed. %s", error)
        await asyncio.sleep(SWEEP_EVERY_S)
