"""What is done again and again while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def repeating(
    work: Callable[[], Awaitable[object]],
    *,
    every_s: float,
    trouble: str,
    comes_first: bool = False,
    comes_last: bool = False,
) -> AsyncGenerator[None]:
    """Do some work every so often until the block ends.

    A failure ends nothing: it is logged, once until the work succeeds again. The work is told to end, not cancelled:
    what is under way in another thread would be done all the same, and nobody would know.

    Args:
        work: what is to be done.
        every_s: how long to rest in between.
        trouble: what a failure means, as a sentence for the log.
        comes_first: whether it is done once before the block begins.
        comes_last: whether it is done once more after the block.
    """
    chore = _Chore(work, trouble)
    if comes_first:
        await chore.do()
    ended = asyncio.Event()
    task = asyncio.create_task(_repeat(chore, every_s, ended))
    try:
        yield
    finally:
        ended.set()
        await task
        if comes_last:
            await chore.do()


async def _repeat(chore: _Chore, every_s: float, ended: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), every_s)
        if ended.is_set():
            return
        await chore.do()


class _Chore:
    """Work whose failures are told once."""

    def __init__(self, work: Callable[[], Awaitable[object]], trouble: str) -> None:
        self._work = work
        self._trouble = trouble
        self._is_failing = False

    async def do(self) -> None:
        try:
            await self._work()
        except Exception as error:  # noqa: BLE001 - whatever happens, it is tried again
            if not self._is_failing:
                logger.error("%s %s", self._trouble, error)
            self._is_failing = True
        else:
            self._is_failing = False
