"""Work that a few threads share evenly among tenants, whoever asks for how much.

Reading a text of two megabytes takes a second of a thread, and a thread cannot be stopped. So no more begins than there
are threads, whose turn is next goes round by tenant, nobody has the last thread but whoever has no other, and what
nobody waits for any more never begins.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Result = TypeVar("Result")


class FairTurns:
    """Lets a fixed number of jobs run at a time; the next one is of the tenant that has waited longest for a turn.

    One tenant's jobs take all places but one, so that another's first job waits for none of them; where there is only
    one place, it is everybody's.
    """

    def __init__(self, num_at_once: int) -> None:
        """Begin with all places free."""
        self._num_free = num_at_once
        self._most_of_one = max(1, num_at_once - 1)
        self._running = Counter[str]()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Of each tenant with jobs that wait, in the order of its next turn."""

    async def run(self, tenant: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """Run `work` when it is the tenant's turn.

        Whoever is cancelled while waiting has no turn. Whoever is cancelled later returns at once, and its place is
        free when the work is done.
        """
        await self._wait_for_turn(tenant)
        try:
            job = asyncio.ensure_future(work())
        except BaseException:
            self._end(tenant)
            raise
        job.add_done_callback(lambda _: self._end(tenant))
        return await asyncio.shield(job)

    async def _wait_for_turn(self, tenant: str) -> None:
        if self._may_start(tenant):
            self._start(tenant)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(tenant, turn)
            else:  # the turn came in the same moment
                self._end(tenant)
            raise

    def _may_start(self, tenant: str) -> bool:
        return self._num_free > 0 and self._running[tenant] < self._most_of_one

    def _start(self, tenant: str) -> None:
        self._num_free -= 1
        self._running[tenant] += 1

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(tenant, ())
        if turn in queue:  # else `_end` came first and passed over it
            self._keep(tenant, [other for other in queue if other is not turn])

    def _keep(self, tenant: str, turns: Iterable[asyncio.Future[None]]) -> None:
        """Have a tenant wait for these, in its place of the order or as the last one."""
        queue = deque(turns)
        if queue:
            self._waiting[tenant] = queue
        else:
            self._waiting.pop(tenant, None)

    def _end(self, tenant: str) -> None:
        """Free a place, and give it to the next tenant that may have one, which is the last one afterwards."""
        self._num_free += 1
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        for following in list(filter(self._may_start, self._waiting)):
            # One that is cancelled may not have been woken yet to leave.
            turns = [turn for turn in self._waiting.pop(following) if not turn.cancelled()]
            if turns:
                self._start(following)
                turns[0].set_result(None)
                self._keep(following, turns[1:])
                return
