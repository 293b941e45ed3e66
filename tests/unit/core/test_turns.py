"""Turns of tenants: never more at a time than there are places, one tenant after the other, nobody forgotten."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.turns import FairTurns

pytestmark = pytest.mark.anyio

ARRIVE, FINISH, CANCEL = "arrive", "finish", "cancel"
STEPS = st.lists(st.tuples(st.sampled_from([ARRIVE, ARRIVE, FINISH, CANCEL]), st.integers(0, 100)), max_size=60)
TENANTS = "abc"


@dataclass
class Model:
    """What should be running: brute force, over lists."""

    num_places: int
    running: list[int] = field(default_factory=list)
    queues: dict[str, deque[int]] = field(default_factory=dict)
    tenants: list[str] = field(default_factory=list)
    """Of all jobs."""

    def arrive(self, tenant: str, job: int) -> None:
        self.tenants.append(tenant)
        if self.has_place(tenant):
            self.running.append(job)
        else:
            self.queues.setdefault(tenant, deque()).append(job)

    def has_place(self, tenant: str) -> bool:
        own = sum(self.tenants[job] == tenant for job in self.running)
        return len(self.running) < self.num_places and (own < self.num_places - 1 or self.num_places == 1)

    def finish(self, job: int) -> None:
        self.running.remove(job)
        for tenant, queue in list(self.queues.items()):
            if self.has_place(tenant):
                del self.queues[tenant]
                self.running.append(queue.popleft())
                if queue:
                    self.queues[tenant] = queue
                return

    def cancel(self, job: int) -> None:
        for tenant, queue in list(self.queues.items()):
            if job in queue:
                queue.remove(job)
                if not queue:
                    del self.queues[tenant]


class Jobs:
    """Work that runs until a test says that it is done."""

    def __init__(self, turns: FairTurns) -> None:
        self.turns = turns
        self.running: list[int] = []
        self.tasks: dict[int, asyncio.Task[int]] = {}
        self._ends: dict[int, asyncio.Event] = {}

    def start(self, tenant: str, job: int) -> None:
        self._ends[job] = asyncio.Event()
        self.tasks[job] = asyncio.create_task(self.turns.run(tenant, lambda: self._work(job)))

    def finish(self, job: int) -> None:
        self._ends[job].set()

    async def _work(self, job: int) -> int:
        self.running.append(job)
        await self._ends[job].wait()
        self.running.remove(job)
        return job


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@settings(max_examples=100, deadline=None)
@given(STEPS, st.integers(1, 4))
def test_what_runs_is_what_the_model_says(steps: list[tuple[str, int]], num_places: int) -> None:
    async def play() -> None:
        jobs, model, next_job = Jobs(FairTurns(num_places)), Model(num_places), 0
        for step, number in steps:
            if step == ARRIVE:
                tenant = TENANTS[number % len(TENANTS)]
                jobs.start(tenant, next_job)
                model.arrive(tenant, next_job)
                next_job += 1
            elif step == FINISH and model.running:
                job = sorted(model.running)[number % len(model.running)]
                jobs.finish(job)
                model.finish(job)
            elif step == CANCEL and next_job:
                jobs.tasks[number % next_job].cancel()  # one that runs goes on, for nobody
                model.cancel(number % next_job)
            await settle()
            assert sorted(jobs.running) == sorted(model.running)
        while model.running:
            job = model.running[0]
            jobs.finish(job)
            model.finish(job)
            await settle()
        results = await asyncio.gather(*jobs.tasks.values(), return_exceptions=True)
        assert all(result == job or isinstance(result, asyncio.CancelledError) for job, result in enumerate(results))

    asyncio.run(play())


MOMENTS = st.lists(
    st.tuples(st.sampled_from([ARRIVE, FINISH, CANCEL]), st.integers(0, 7), st.integers(0, 3)), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(MOMENTS, st.integers(1, 4))
def test_nothing_is_lost_whatever_comes_in_the_same_moment(
    moments: list[tuple[str, int, int]], num_places: int
) -> None:
    """Ends and cancellations so close to each other that nobody has been woken in between."""

    async def play() -> None:
        failures: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        jobs, next_job = Jobs(FairTurns(num_places)), 0
        cancelled: set[int] = set()
        for step, number, num_ticks in moments:
            if step == ARRIVE:
                jobs.start(TENANTS[number % len(TENANTS)], next_job)
                next_job += 1
            elif step == FINISH and jobs.running:
                jobs.finish(jobs.running[number % len(jobs.running)])
            elif step == CANCEL and next_job:
                cancelled.add(number % next_job)
                jobs.tasks[number % next_job].cancel()
            for _ in range(num_ticks):
                await asyncio.sleep(0)
            assert len(jobs.running) <= num_places
        for job in range(next_job):
            jobs.finish(job)
        async with asyncio.timeout(5):
            results = await asyncio.gather(*jobs.tasks.values(), return_exceptions=True)
            for tenant in TENANTS:  # all places are free again, for everybody
                assert await jobs.turns.run(tenant, lambda: asyncio.sleep(0, "done")) == "done"
        assert all(result == job or job in cancelled for job, result in enumerate(results))
        assert not failures

    asyncio.run(play())


async def test_one_tenants_jobs_leave_a_place_for_anothers() -> None:
    jobs = Jobs(FairTurns(2))
    for job in range(5):
        jobs.start("a", job)
    jobs.start("b", 5)
    await settle()
    assert sorted(jobs.running) == [0, 5]
    jobs.tasks[1].cancel()
    for job in (0, 5, 2, 3, 4):
        jobs.finish(job)
    assert await asyncio.gather(*(jobs.tasks[job] for job in (0, 2, 3, 4, 5))) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("num_ticks", range(6))
async def test_a_turn_that_comes_in_the_moment_of_a_cancellation_is_passed_on(num_ticks: int) -> None:
    jobs = Jobs(FairTurns(1))
    for job in range(3):
        jobs.start("a", job)
    await settle()
    jobs.finish(0)
    for _ in range(num_ticks):  # until the work has ended, its place is free, the next one has been told, has begun
        await asyncio.sleep(0)
    jobs.tasks[1].cancel()
    jobs.finish(1)
    await settle()
    assert jobs.running == [2]
    jobs.finish(2)
    assert await jobs.tasks[2] == 2


async def test_a_failure_is_its_own_tasks_and_frees_the_place() -> None:
    turns = FairTurns(1)

    async def fail() -> None:
        raise ValueError("no")

    async def work() -> str:
        return "done"

    with pytest.raises(ValueError, match="no"):
        await turns.run("a", fail)
    assert await turns.run("b", work) == "done"


async def test_what_cannot_even_begin_frees_the_place() -> None:
    turns = FairTurns(1)

    def refuse() -> asyncio.Future[str]:
        raise RuntimeError("the threads are gone")

    with pytest.raises(RuntimeError, match="gone"):
        await turns.run("a", refuse)
    assert await turns.run("b", lambda: asyncio.sleep(0, "done")) == "done"
