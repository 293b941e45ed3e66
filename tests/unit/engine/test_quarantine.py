"""Suspects: refused after the second death, one at a time before, forgotten after ten minutes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from qwenstack.core.errors import RequestError
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.quarantine import Quarantine, request_digest
from qwenstack.engine.wire import Submit


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def admitted(quarantine: Quarantine, digest: str) -> bool:
    try:
        async with quarantine.admit(digest):
            return True
    except RequestError as error:
        return error.code != "quarantined"


def test_the_second_death_is_the_last() -> None:
    async def body() -> None:
        quarantine = Quarantine(Clock())
        quarantine.blame(["poison", "poison"])
        assert await admitted(quarantine, "poison"), "one death counts once"
        quarantine.blame(["poison", "bystander"])
        assert not await admitted(quarantine, "poison")
        assert await admitted(quarantine, "bystander")

    asyncio.run(body())


def test_an_answer_clears_a_suspect() -> None:
    async def body() -> None:
        quarantine = Quarantine(Clock())
        quarantine.blame(["bystander"])
        quarantine.acquit("bystander")
        quarantine.blame(["bystander"])
        assert await admitted(quarantine, "bystander")

    asyncio.run(body())


def test_suspicions_end_ten_minutes_after_the_last_death() -> None:
    async def body() -> None:
        clock = Clock()
        quarantine = Quarantine(clock)
        quarantine.blame(["poison"])
        clock.now_s += 599
        quarantine.blame(["poison"])
        clock.now_s += 599
        assert not await admitted(quarantine, "poison")
        clock.now_s += 1
        assert await admitted(quarantine, "poison")

    asyncio.run(body())


def test_suspects_wait_for_each_other_and_for_nobody_else() -> None:
    async def body() -> list[str]:
        quarantine = Quarantine(Clock())
        quarantine.blame(["a", "b"])
        log: list[str] = []

        async def run(name: str) -> None:
            async with quarantine.admit(name):
                log.append(f"{name} begins")
                for _ in range(3):
                    await asyncio.sleep(0)
                log.append(f"{name} ends")

        await asyncio.gather(run("a"), run("b"), run("c"))
        return log

    log = asyncio.run(body())
    assert log.index("a ends") < log.index("b begins")
    assert log.index("c begins") < log.index("a ends")


def test_who_waited_while_the_same_request_ended_the_engine_again_is_refused() -> None:
    async def body() -> None:
        quarantine = Quarantine(Clock())
        quarantine.blame(["poison"])
        async with quarantine.admit("poison"):
            second = asyncio.create_task(admitted(quarantine, "poison"))
            await asyncio.sleep(0)
            quarantine.blame(["poison"])
        assert not await second

    asyncio.run(body())


def test_the_list_of_suspects_is_bounded() -> None:
    quarantine = Quarantine(Clock())
    for number in range(10_000):
        quarantine.blame([str(number)])
    assert len(quarantine._suspicions) == 4096
    assert "9999" in quarantine._suspicions


def test_a_digest_names_what_is_computed_and_not_who_asks() -> None:
    request = Submit("one", [1, 2], SamplingParams(logit_bias={1: 1.0, 2: 2.0}), RequestOptions(tenant="a"))
    same = Submit("two", [1, 2], SamplingParams(logit_bias={2: 2.0, 1: 1.0}), RequestOptions(tenant="b", priority=3))
    assert request_digest(request) == request_digest(same)
    others = (
        Submit("one", [1, 3], request.params, request.options),
        Submit("one", [1, 2], replace(request.params, max_tokens=17), request.options),
        Submit("one", [1, 2], request.params, RequestOptions(adapter="law")),
    )
    assert len({request_digest(other) for other in (request, *others)}) == 4
