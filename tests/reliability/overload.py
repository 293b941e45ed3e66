"""More than there is room for, and many tenants: what can be served is, and the rest is told so at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from reliability.connection import Connection
from reliability.crowd import completion, crowding
from reliability.load import CHAT, Arrivals, Outcome, chat, send_at_rate
from reliability.server import Server, serving
from reliability.verdict import Bar, Findings, Row, percentile

SEATS = 8
MAY_WAIT = 8
NUM_TOKENS = 10
TOKEN_S = 0.02
CAPACITY = SEATS / (NUM_TOKENS * TOKEN_S)
"""Answers a second that the clocked engine can give."""
REFUSALS = frozenset({429, 503})


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """How long each part takes."""

    peak_s: float
    overload_s: float
    times: float = 4


async def bear_overload(plan: Overload) -> Findings:
    """L4."""
    engine = {"token_s": TOKEN_S, "num_seats": SEATS, "max_waiting": MAY_WAIT}
    quiet = Arrivals(rate=CAPACITY / 8, seconds=2, num_tokens=NUM_TOKENS)
    flood = Arrivals(rate=CAPACITY * plan.times, seconds=plan.overload_s, num_tokens=NUM_TOKENS)
    async with serving(engine_options=engine) as server:
        before = await send_at_rate(server, quiet)
        peak = await goodput_when_full(server, plan.peak_s)
        outcomes = await send_at_rate(server, flood)
        recovery_s = await seconds_until_quick(server, 1.5 * median_ms(before))
        census = await server.census()
    served = [each for each in outcomes if each.status == 200]
    refused = [each for each in outcomes if each.status in REFUSALS]
    span_s = max((each.due_s + each.latency_s for each in served), default=plan.overload_s)
    waits_ms = [each.latency_s * 1000 for each in refused]
    return Findings(
        bars=[
            Bar(name="neither answers nor refusals", value=len(outcomes) - len(served) - len(refused), at_most=0),
            Bar(name="refusals without Retry-After", value=sum(not each.retry_after for each in refused), at_most=0),
            Bar(name="answers left open", value=census["open_answers"], at_most=0),
            Bar(name="refusals", value=len(refused), at_least=1),
            Bar(name="goodput of the peak", value=len(served) / span_s / peak, at_least=0.9, is_speed=True),
            Bar(name="refusals p99 ms", value=percentile(waits_ms, 99), at_most=100, is_speed=True),
            Bar(name="until as quick as before s", value=recovery_s, at_most=10, is_speed=True),
        ],
        figures={"requests": flood.count, "peak a second": round(peak, 1), "served": len(served)},
    )


def median_ms(outcomes: list[Outcome]) -> float:
    """Return the middle latency of the answers."""
    return percentile([each.latency_s * 1000 for each in outcomes if each.status == 200], 50)


async def goodput_when_full(server: Server, seconds: float) -> float:
    """Keep every seat taken and nobody waiting; return the answers a second."""
    clock = asyncio.get_running_loop().time
    began = clock()

    async def ask_again_and_again() -> int:
        connection, count = await Connection.open(server), 0
        while clock() - began < seconds:
            answer = await connection.ask("POST", CHAT, key=server.key, body=chat(NUM_TOKENS))
            count += answer.status == 200
        await connection.close()
        return count

    counts = await asyncio.gather(*(ask_again_and_again() for _ in range(SEATS)))
    return sum(counts) / (clock() - began)


async def seconds_until_quick(server: Server, limit_ms: float) -> float:
    """Ask one at a time until the middle one of five is as quick as that, or a minute is over."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while True:
        five = await send_at_rate(server, Arrivals(rate=4, seconds=1.25, num_tokens=NUM_TOKENS))
        if median_ms(five) <= limit_ms or clock() - began > 60:
            return max(0.0, clock() - began - 1.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTenants:
    """One tenant that asks a lot, and one that asks one at a time."""

    crowd: int
    alone_s: float
    crowded_s: float


async def share_between_tenants(plan: TwoTenants) -> Findings:
    """L7."""
    engine = {"model_name": "tiny", "num_threads": 1, "max_model_len": 512, "max_num_seqs": 16}
    engine |= {"prefix_cache_disk_bytes": 0, "enable_prefix_caching": False}
    async with serving(engine="tiny", engine_options=engine, tenants=("crowd", "single")) as server:
        alone_s = await first_tokens_s(server, "single", seconds=plan.alone_s)
        async with crowding(server, size=plan.crowd, key=server.keys["crowd"]) as others:
            await asyncio.sleep(2)
            crowded_s = await first_tokens_s(server, "single", seconds=plan.crowded_s)
    return Findings(
        bars=[
            Bar(name="failures", value=others.failures, at_most=0),
            Bar(name="answers of the others", value=others.answers, at_least=plan.crowd),
            Bar(
                name="first token p95, times that alone",
                value=percentile(crowded_s, 95) / percentile(alone_s, 95),
                at_most=3,
                is_speed=True,
            ),
        ],
        figures={
            "others at once": plan.crowd,
            "requests": len(crowded_s),
            "alone p50 ms": round(percentile(alone_s, 50) * 1000, 1),
            "alone p95 ms": round(percentile(alone_s, 95) * 1000, 1),
            "crowded p50 ms": round(percentile(crowded_s, 50) * 1000, 1),
            "crowded p95 ms": round(percentile(crowded_s, 95) * 1000, 1),
        },
    )


async def first_tokens_s(server: Server, tenant: str, *, seconds: float) -> list[float]:
    """Ask for one answer after another; return the seconds until the first event of each."""
    clock = asyncio.get_running_loop().time
    ends = clock() + seconds
    waits_s: list[float] = []
    while clock() < ends:
        connection = await Connection.open(server)
        began, first = clock(), 0.0
        async for _ in connection.events("/v1/completions", key=server.keys[tenant], body=completion(len(waits_s))):
            first = first or clock() - began
        await connection.close()
        waits_s.append(first)
    return waits_s


L4 = Row(
    id="L4",
    claim="4 times as many requests as can be served: as many answers as before, refusals at once, and soon over",
    sizes={"ci": Overload(peak_s=3, overload_s=4), "long": Overload(peak_s=20, overload_s=180)},
    run=bear_overload,
)
L7 = Row(
    id="L7",
    claim="one tenant keeps 100 requests open: the first token of another's comes within 3 times as long as alone",
    sizes={
        "ci": TwoTenants(crowd=30, alone_s=1, crowded_s=2),
        "long": TwoTenants(crowd=100, alone_s=20, crowded_s=180),
    },
    run=share_between_tenants,
)
