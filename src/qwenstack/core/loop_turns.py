"""Pieces of work on one event loop, shared evenly among tenants.

asyncio runs all that is ready before it looks at the network again. Where the answers of 16 streams end in the same
step of the engine, and their clients ask again at once, whoever comes meanwhile waits for all of it: 20 to 30 ms in a
server whose own share of a request was 3 ms (lab notes, "A turn of the loop").
"""

from __future__ import annotations

import asyncio
from collections import deque


class LoopTurns:
    """Lets one piece of work begin in each turn of the event loop, behind what is ready, one tenant after the other.

    Belongs to one loop for its life.
    """

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._is_next_taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Of each tenant with pieces that wait, in the order of its next turn."""

    async def wait(self, tenant: str) -> None:
        """Return when a piece of work of this tenant may begin, mostly in the next turn; it awaits nothing slow."""
        loop = asyncio.get_running_loop()
        if not self._is_next_taken:
            self._is_next_taken = True
            loop.call_soon(self._give_turn)  # before the piece that begins then
            await asyncio.sleep(0)
            return
        turn = loop.create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        await turn

    def _give_turn(self) -> None:
        """Give the next turn of the loop to the first of the tenant whose it is, which is the last one afterwards."""
        while self._waiting:
            tenant, turns = next(iter(self._waiting.items()))
            del self._waiting[tenant]
            while turns and turns[0].cancelled():  # who left costs those behind nothing
                turns.popleft()
            if not turns:
                continue
            turns.popleft().set_result(None)
            if turns:
                self._waiting[tenant] = turns
            asyncio.get_running_loop().call_soon(self._give_turn)
            return
        self._is_next_taken = False
