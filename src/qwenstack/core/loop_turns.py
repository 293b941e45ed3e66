"""Short pieces of work on one event loop, shared evenly among tenants.

asyncio runs all that is ready before it looks at the network again. Where the answers of 16 streams end in the same
step of the engine, and their clients ask again at once, whoever comes meanwhile waits for all of it: 20 to 30 ms in a
server whose own share of a request was 3 ms (lab notes, "A turn of the loop").
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

TURN_S = 0.0005
"""Pieces begin for so long in a turn of the loop; one of them takes 0.5 to 1 ms."""


class LoopTurns:
    """Spreads pieces of work over the turns of the event loop, one tenant after the other.

    Pieces begin as they come until a turn has taken its time; each later turn begins one of those that wait. Belongs to
    one loop for its life.
    """

    def __init__(self, turn_s: float = TURN_S, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Let pieces begin for `turn_s` of each turn."""
        self._turn_s = turn_s
        self._clock = clock
        self._is_in_turn = False
        self._ends_at = 0.0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Of each tenant with pieces that wait, in the order of its next turn."""

    async def wait(self, tenant: str) -> None:
        """Return when a piece of work of this tenant may begin, mostly at once; it is to await nothing slow."""
        if not self._is_in_turn:
            self._begin()
        if not self._waiting and self._clock() < self._ends_at:
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        await turn

    def _begin(self) -> None:
        self._is_in_turn = True
        self._ends_at = self._clock() + self._turn_s
        asyncio.get_running_loop().call_soon(self._begin_next)  # runs in the next turn, after a look at the network

    def _begin_next(self) -> None:
        self._is_in_turn = False
        if self._give_turn():
            self._begin()

    def _give_turn(self) -> bool:
        """Wake the first of the tenant whose turn it is, which is the last one afterwards; False if nobody waits."""
        while self._waiting:
            tenant, turns = next(iter(self._waiting.items()))
            del self._waiting[tenant]
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns
            if not turn.cancelled():
                turn.set_result(None)
                return True
        return False
