"""Turns of the event loop: no turn begins more than its time allows, tenants go round, nobody is forgotten."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.loop_turns import LoopTurns

pytestmark = pytest.mark.anyio

PIECES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.2, 0.4, 1.5])), min_size=1, max_size=40)
"""Tenant and seconds of each piece, beside turns of one second."""


class Loop:
    """Counts the turns of the event loop, and how long what ran in them would have taken."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.turn = 0
        self._tick()

    def _tick(self) -> None:
        self.turn += 1
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def stop(self) -> None:
        self._handle.cancel()


async def run_pieces(pieces: list[tuple[str, float]], left: set[int] = frozenset()) -> list[tuple[int, int]]:
    """Run pieces that all come at once, without those that leave while they wait; return number and turn of each."""
    loop = Loop()
    turns = LoopTurns(1.0, clock=lambda: loop.now_s)
    begun: list[tuple[int, int]] = []

    async def piece(number: int, tenant: str, seconds: float) -> None:
        await turns.wait(tenant)
        begun.append((number, loop.turn))
        loop.now_s += seconds

    tasks = [asyncio.create_task(piece(number, *each)) for number, each in enumerate(pieces)]
    await asyncio.sleep(0)
    waiting = set(range(len(pieces))) - {number for number, _ in begun}
    for number in left & waiting:
        tasks[number].cancel()
    await asyncio.wait(tasks)
    loop.stop()
    return begun


@given(pieces=PIECES)
def test_a_turn_ends_with_the_piece_that_uses_it_up(pieces: list[tuple[str, float]]):
    begun = asyncio.run(run_pieces(pieces))
    assert sorted(number for number, _ in begun) == list(range(len(pieces)))
    spent = Counter[int]()
    for number, turn in begun:
        assert spent[turn] < 1.0, "the turn was over"
        spent[turn] += pieces[number][1]


@given(pieces=PIECES)
def test_tenants_that_wait_go_round(pieces: list[tuple[str, float]]):
    begun = asyncio.run(run_pieces(pieces))
    first_turn = begun[0][1]
    queue = [number for number, turn in begun if turn > first_turn]
    expected: list[int] = []
    lines = {tenant: [number for number in sorted(queue) if pieces[number][0] == tenant] for tenant in "abc"}
    order = list(dict.fromkeys(pieces[number][0] for number in sorted(queue)))
    while any(lines.values()):
        expected += [lines[tenant].pop(0) for tenant in order if lines[tenant]]
    assert queue == expected


@given(pieces=PIECES, left=st.sets(st.integers(0, 39)))
def test_who_leaves_takes_no_turn(pieces: list[tuple[str, float]], left: set[int]):
    begun = asyncio.run(run_pieces(pieces, left))
    assert {number for number, _ in begun} >= set(range(len(pieces))) - left
    turns = [turn for _, turn in begun if turn > begun[0][1]]
    assert all(after - before == 1 for before, after in pairwise(turns)), "no turn was given to nobody"


async def test_the_network_is_looked_at_between_pieces():
    turns = LoopTurns(0.0)  # each piece uses its turn up
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
