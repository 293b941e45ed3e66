"""Clients that leave: everything that was made for them is gone within a second, and nobody else notices."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reliability.connection import BrokenAnswerError, Connection
from reliability.server import Server, serving
from reliability.verdict import Bar, Findings, Row

COMPLETIONS = "/v1/completions"
NUM_BYSTANDERS = 8
ANSWER_TOKENS = 200
MOST_EVENTS = 40
GONE_TIMEOUT_S = 60.0
SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """How many leave, and how often."""

    connections: int
    rounds: int


def bystander(number: int) -> dict[str, object]:
    """Return a request whose answer has every token and its exact log-probability."""
    return {
        "model": "default",
        "prompt": [3, 1, 4, 1, 5, number],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0.8,
        "seed": 1,
        "ignore_eos": True,
        "logprobs": 1,
    }


async def answer_to(server: Server, number: int) -> Any:
    """Ask as one of those who stay."""
    connection = await Connection.open(server)
    answer = await connection.ask("POST", COMPLETIONS, key=server.key, body=bystander(number))
    await connection.close()
    return answer.json()["choices"] if answer.status == 200 else answer.status


async def leave_early(server: Server, dice: random.Random) -> None:
    """Ask for a long answer and leave: before it begins or during it, properly or by a reset."""
    prompt = [dice.randrange(256) for _ in range(dice.randint(1, 60))]
    body = bystander(0) | {"prompt": prompt, "logprobs": None}
    connection = await Connection.open(server)
    num_events = dice.randint(-1, MOST_EVENTS)
    try:
        if num_events < 0:
            head_only = asyncio.create_task(connection.begin("POST", COMPLETIONS, key=server.key, body=body))
            await asyncio.wait([head_only], timeout=dice.uniform(0, 0.05))
            head_only.cancel()
            return
        async for _ in connection.events(COMPLETIONS, key=server.key, body=body):
            num_events -= 1
            if num_events <= 0:
                return
    except BrokenAnswerError:
        return
    finally:
        if dice.random() < 0.5:
            connection.reset()
        else:
            connection.writer.close()


async def seconds_until(server: Server, is_reached: Callable[[Mapping[str, Any]], bool]) -> float:
    """Wait until the server's census is so, or give up; return the time that it took."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while not is_reached(await server.census()) and clock() - began < GONE_TIMEOUT_S:
        await asyncio.sleep(0.02)
    return clock() - began


async def one_round(server: Server, connections: int, dice: random.Random) -> tuple[list[Any], float]:
    """Have some stay and many leave; return the answers, and the seconds until nothing is held for those who left."""
    staying = [asyncio.create_task(answer_to(server, number)) for number in range(NUM_BYSTANDERS)]
    await asyncio.gather(*(leave_early(server, dice) for _ in range(connections)))
    freed_s = await seconds_until(server, lambda now: now["open_answers"] <= sum(not task.done() for task in staying))
    return [await task for task in staying], freed_s


async def survive_disconnects(plan: Storm) -> Findings:
    """C9."""
    dice = random.Random(SEED)
    options = {"model_name": "tiny", "num_threads": 1, "max_model_len": 512, "max_num_seqs": 32}
    options |= {"max_num_waiting": plan.connections + NUM_BYSTANDERS, "prefix_cache_disk_bytes": 0}
    async with serving(engine="tiny", engine_options=options) as server:
        alone = [await answer_to(server, number) for number in range(NUM_BYSTANDERS)]
        before = await server.census()
        different, slowest_s = 0, 0.0
        for _ in range(plan.rounds):
            answers, freed_s = await one_round(server, plan.connections, dice)
            slowest_s = max(slowest_s, freed_s)
            different += sum(got != expected for got, expected in zip(answers, alone, strict=True))
        await seconds_until(server, lambda now: now["blocks_held"] == 0 and now["tasks"] <= before["tasks"])
        left, log = await server.census(), server.log
    return Findings(
        bars=[
            Bar(name="bystanders with other tokens", value=different, at_most=0),
            Bar(name="blocks held", value=left["blocks_held"], at_most=0),
            Bar(name="answers open", value=left["open_answers"], at_most=0),
            Bar(name="tasks left", value=left["tasks"] - before["tasks"], at_most=0),
            Bar(name="sockets left", value=left["sockets"] - before["sockets"], at_most=0),
            Bar(name="failures in the log", value=log.count("Traceback"), at_most=0),
            Bar(name="slowest until their answers are gone s", value=slowest_s, at_most=1, is_speed=True),
        ],
        figures={"connections": plan.connections, "rounds": plan.rounds, "seed": SEED},
    )


C9 = Row(
    id="C9",
    claim="1,000 clients leave in the middle, 5 times: all memory is free, and those who stay get the same tokens",
    sizes={"ci": Storm(connections=100, rounds=2), "long": Storm(connections=1000, rounds=5)},
    run=survive_disconnects,
)
