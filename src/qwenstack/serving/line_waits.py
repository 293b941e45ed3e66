"""Knows which lines of a batch wait, and when all of them do for so long that the batch is not worth its place."""

from __future__ import annotations

import asyncio
import time

LONGEST_STAY_S = 5.0
"""To give a place back and find the lines again, up to a second of a large file, is not worth it for less."""


class LineWaits:
    """The waits of those who answer a batch's lines."""

    def __init__(self, num_workers: int) -> None:
        """Begin with so many at work."""
        self._num_at_work = num_workers
        self._ends_s: list[float] = []
        self.leaving: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        """Comes when nobody is at work and the first is not for a while: in how many seconds that one is."""

    async def wait(self, wait_s: float) -> None:
        """Wait before a line is tried again."""
        end_s = time.monotonic() + wait_s
        self._ends_s.append(end_s)
        self.end_work()
        try:
            await asyncio.sleep(wait_s)
        finally:
            self._ends_s.remove(end_s)
            self._num_at_work += 1

    def end_work(self) -> None:
        """Note that somebody is not at work any more."""
        self._num_at_work -= 1
        if self._num_at_work or not self._ends_s or self.leaving.done():
            return
        wait_s = min(self._ends_s) - time.monotonic()
        if wait_s > LONGEST_STAY_S:
            self.leaving.set_result(wait_s)
