"""Chores: done again and again, failing or not, and never torn off."""

from __future__ import annotations

import asyncio

import pytest

from qwenstack.serving.chores import repeating

pytestmark = pytest.mark.anyio


async def test_work_goes_on_after_failures_which_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = iter([True, False, False, True, False])
    done = asyncio.Event()

    async def work() -> None:
        is_well = next(outcomes, None)
        if is_well is None:
            done.set()
        elif not is_well:
            raise OSError("away")

    async with repeating(work, every_s=0, trouble="Nothing is looked after."):
        await asyncio.wait_for(done.wait(), 10)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["Nothing is looked after. away"] * 2


async def test_what_is_under_way_at_the_end_is_finished() -> None:
    begun, done = asyncio.Event(), []

    async def work() -> None:
        begun.set()
        await asyncio.sleep(0.05)
        done.append("done")

    async with repeating(work, every_s=0, trouble="."):
        await begun.wait()
    assert done


@pytest.mark.parametrize(("comes_first", "comes_last"), [(True, False), (False, True), (True, True), (False, False)])
async def test_work_comes_first_and_last_where_that_is_wanted(comes_first: bool, comes_last: bool) -> None:
    times = 0

    async def work() -> None:
        nonlocal times
        times += 1

    async with repeating(work, every_s=3600, trouble=".", comes_first=comes_first, comes_last=comes_last):
        assert times == comes_first
    assert times == comes_first + comes_last


async def test_a_block_that_raises_ends_the_work_too() -> None:
    async def work() -> None:
        return

    before = asyncio.all_tasks()
    with pytest.raises(KeyError):
        async with repeating(work, every_s=0, trouble="."):
            raise KeyError
    assert asyncio.all_tasks() == before
