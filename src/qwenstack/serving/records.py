"""What a server keeps for its tenants, and what has to be done for it while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path

from qwenstack.serving.batch_runner import Answer, BatchRunner
from qwenstack.serving.batches import Batches, BatchStore
from qwenstack.serving.chores import repeating
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.files import Files
from qwenstack.serving.identity import KeyRing
from qwenstack.serving.lease import holding
from qwenstack.serving.responses import Responses
from qwenstack.serving.service import GenerationService
from qwenstack.storage import Database, ServerLease, StoredBatches, StoredFiles, StoredResponses, UsageRecords

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 600.0
"""Retention is counted in days; a tenant that fills its quota does not do so in minutes."""


class Records:
    """Responses, files and batches, and what they are kept in."""

    def __init__(
        self,
        service: GenerationService,
        config: ServeConfig,
        database: Database | None,
        *,
        keys: KeyRing,
        make_answers: Callable[[Responses], Mapping[str, Answer]],
    ) -> None:
        """Keep things in `database`; None: nothing is kept.

        Args:
            service: makes the answers.
            config: says where, how much and for how long.
            database: holds the rows.
            keys: say what those who made a batch may do by now.
            make_answers: returns what answers the lines of batches, by endpoint.

        Raises:
            StorageError: the folder of the files cannot be used.
        """
        self._max_response_bytes = config.max_response_bytes
        self._lease = self._stored_responses = self._usage = None
        if database is not None:
            self._usage = UsageRecords(database)
            self._lease = ServerLease(database, lease_s=config.lease_s)
            self._stored_responses = StoredResponses(database, retention_s=config.retention_days * 86_400)
        self._stored_files = _open_files(config, database)
        self.responses = Responses(service, self._stored_responses, self._lease)
        self.files = Files(self._stored_files, max_file_bytes=config.max_upload_bytes)
        answers = make_answers(self.responses)
        self._retention_s = config.retention_days * 86_400
        self._stored_batches = self._runner = store = None
        if database is not None and self._stored_files is not None:
            self._stored_batches = StoredBatches(database)
            store = BatchStore(batches=self._stored_batches, files=self._stored_files)
        self.batches = Batches(store, answers.keys())
        if store is not None and self._lease is not None:
            self._runner = BatchRunner(
                self.batches,
                store,
                self._lease,
                answers=answers,
                find_caller=lambda saved, tenant: saved.now(
                    tenant, keys, takes_tokens=config.oidc is not None, now_s=time.time()
                ),
                max_line_bytes=config.max_body_bytes,
            )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Look after what is kept until the block ends."""
        if self._lease is None:
            yield
            return
        async with holding(self._lease, self.responses.look_after), self._sweeping():
            try:
                async with self._answering_batches():
                    yield
            finally:
                await self.responses.stop()

    def _sweeping(self) -> contextlib.AbstractAsyncContextManager[None]:
        async def sweep() -> None:
            num_removed = await asyncio.to_thread(self._sweep)
            if num_removed:
                logger.info("%d things that were kept have expired.", num_removed)

        return repeating(sweep, every_s=SWEEP_EVERY_S, trouble="What has expired is not removed.", comes_first=True)

    @contextlib.asynccontextmanager
    async def _answering_batches(self) -> AsyncGenerator[None]:
        if self._runner is None:
            yield
            return
        task = asyncio.create_task(self._runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _sweep(self) -> int:
        num_removed = 0 if self._usage is None else self._usage.sweep(now_s=time.time())
        if self._stored_responses is not None:
            num_removed += self._stored_responses.sweep(max_tenant_bytes=self._max_response_bytes)
        if self._stored_files is not None:
            num_removed += self._stored_files.sweep()
        if self._stored_batches is not None:
            num_removed += self._stored_batches.sweep(retention_s=self._retention_s)
        return num_removed


def _open_files(config: ServeConfig, database: Database | None) -> StoredFiles | None:
    if database is None:
        return None
    folder = config.files_dir or _beside(database.path)
    return None if folder is None else StoredFiles(database, folder, quota_bytes=config.max_files_bytes)


def _beside(database_file: Path | None) -> Path | None:
    return None if database_file is None else database_file.with_name(f"{database_file.stem}-files")
