"""Turns of the event loop: one piece begins in each, tenants go round, nobody is forgotten."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.loop_turns import LoopTurns

pytestmark = pytest.mark.anyio

TENANTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=40)


class Loop:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.turn = 0
        self._tick()

    def _tick(self) -> None:
        self.turn += 1
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def stop(self) -> None:
        self._handle.cancel()


async def run_pieces(tenants: list[str], left: set[int] = frozenset()) -> list[tuple[int, int]]:
    """Run pieces that all come at once, without those that leave while they wait; return number and turn of each."""
    loop = Loop()
    turns = LoopTurns()
    begun: list[tuple[int, int]] = []

    async def piece(number: int, tenant: str) -> None:
        await turns.wait(tenant)
        begun.append((number, loop.turn))

    tasks = [asyncio.create_task(piece(number, tenant)) for number, tenant in enumerate(tenants)]
    await asyncio.sleep(0)
    assert not begun, "what came before in this turn of the loop goes first"
    for number in left & set(range(len(tenants))):
        tasks[number].cancel()
    await asyncio.wait(tasks)
    loop.stop()
    return begun


@given(tenants=TENANTS)
def test_each_turn_has_one_piece(tenants: list[str]):
    begun = asyncio.run(run_pieces(tenants))
    assert sorted(number for number, _ in begun) == list(range(len(tenants)))
    assert all(after - before == 1 for (_, before), (_, after) in pairwise(begun))


@given(tenants=TENANTS)
def test_tenants_that_wait_go_round(tenants: list[str]):
    first, *begun = (number for number, _ in asyncio.run(run_pieces(tenants)))
    lines = {tenant: [number for number, each in enumerate(tenants) if each == tenant] for tenant in tenants}
    lines[tenants[first]].remove(first)
    order = list(dict.fromkeys(tenants[1:]))
    expected: list[int] = []
    while any(lines.values()):
        expected += [lines[tenant].pop(0) for tenant in order if lines[tenant]]
    assert first == 0, "nobody waited yet"
    assert begun == expected


@given(tenants=TENANTS, left=st.sets(st.integers(0, 39)))
def test_who_leaves_takes_no_turn(tenants: list[str], left: set[int]):
    begun = asyncio.run(run_pieces(tenants, left))
    assert {number for number, _ in begun} == set(range(len(tenants))) - left
    assert all(after - before == 1 for (_, before), (_, after) in pairwise(begun)), "no turn was given to nobody"


async def test_who_leaves_costs_those_behind_nothing():
    turns = LoopTurns()
    begun: list[str] = []

    async def piece(tenant: str) -> None:
        await turns.wait(tenant)
        begun.append(tenant)

    running = [asyncio.create_task(piece(tenant)) for tenant in ["first", "a", "a", "b"]]
    await asyncio.sleep(0)
    running[1].cancel()
    await asyncio.wait(running)
    assert begun == ["first", "a", "b"]


async def test_a_turn_is_free_again_when_nobody_waits():
    turns = LoopTurns()
    for _ in range(3):
        loop = Loop()
        await turns.wait("a")
        assert loop.turn == 2, "the next one"
        await asyncio.sleep(0)
        loop.stop()


async def test_the_network_is_looked_at_between_pieces():
    turns = LoopTurns()
    near, far = socket.socketpair()
    seen: list[int | str] = []

    async def piece(number: int) -> None:
        await turns.wait("crowd")
        seen.append(number)
        if number == 3:
            far.send(b"?")

    with near, far:
        near.setblocking(False)
        asyncio.get_running_loop().add_reader(near, lambda: seen.append("a request") if near.recv(1) else None)
        await asyncio.gather(*(piece(number) for number in range(40)))
        asyncio.get_running_loop().remove_reader(near)
    assert "a request" in seen[:10], "not behind all of them"
