"""Work that a few threads share evenly among tenants, whoever asks for how much.

Reading a text of two megabytes takes a second of a thread, and a thread cannot be stopped. So no more begins than there
are threads, whose turn is next goes round by tenant, and what nobody waits for any more never begins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TypeVar

Result = TypeVar("Result")


class FairTurns:
    """Lets a fixed number of jobs run at a time; the next one is of the tenant that has waited longest for a turn."""

    def __init__(self, num_at_once: int) -> None:
        """Begin with all places free."""
        self._num_free = num_at_once
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Of each tenant with jobs that wait, in the order of its next turn."""

    async def run(self, tenant: str, work: Callable[[], Coroutine[object, object, Result]]) -> Result:
        """Run `work` when it is the tenant's turn.

        Whoever is cancelled while waiting has no turn. Whoever is cancelled later returns at once, and its place is
        free when the work is done.
        """
        await self._wait_for_turn(tenant)
        task = asyncio.ensure_future(work())
        task.add_done_callback(lambda _: self._pass_on())
        return await asyncio.shield(task)

    async def _wait_for_turn(self, tenant: str) -> None:
        if self._num_free:
            self._num_free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(tenant, turn)
            else:  # the turn came in the same moment
                self._pass_on()
            raise

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting[tenant]
        queue.remove(turn)
        if not queue:
            del self._waiting[tenant]

    def _pass_on(self) -> None:
        """Give a place that is free to the next tenant, which is the last one afterwards."""
        if not self._waiting:
            self._num_free += 1
            return
        tenant = next(iter(self._waiting))
        queue = self._waiting.pop(tenant)
        queue.popleft().set_result(None)
        if queue:
            self._waiting[tenant] = queue
