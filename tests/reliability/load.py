"""Steady load: requests that come whether or not the last ones are answered, and many streams at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import msgspec

from reliability.connection import BrokenAnswerError, Connection, Pool
from reliability.server import Server, serving
from reliability.verdict import Bar, Findings, Row, percentile

CHAT = "/v1/chat/completions"


def chat(max_tokens: int) -> dict[str, object]:
    """Return a conversation to answer with so many tokens."""
    return {"messages": [{"role": "user", "content": "count"}], "max_tokens": max_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Requests at a steady rate."""

    rate: float
    """Requests a second."""
    seconds: float
    num_tokens: int = 8
    token_s: float = 0.002

    @property
    def count(self) -> int:
        return round(self.rate * self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request."""

    status: int
    """0: the connection broke."""
    due_s: float
    """When it was to be sent, after the first."""
    latency_s: float
    """From then on: a late start is the server's delay too."""
    retry_after: str | None = None


async def send_at_rate(server: Server, plan: Arrivals) -> list[Outcome]:
    """Send each request at its time, whatever became of those before."""
    pool = Pool(server)
    clock = asyncio.get_running_loop().time
    began = clock()

    async def send(due_s: float) -> Outcome:
        try:
            answer = await pool.ask("POST", CHAT, key=server.key, body=chat(plan.num_tokens))
        except (BrokenAnswerError, OSError):
            return Outcome(status=0, due_s=due_s, latency_s=clock() - began - due_s)
        return Outcome(
            status=answer.status,
            due_s=due_s,
            latency_s=clock() - began - due_s,
            retry_after=answer.headers.get("retry-after"),
        )

    sent: list[asyncio.Task[Outcome]] = []
    for number in range(plan.count):
        due_s = number / plan.rate
        await asyncio.sleep(max(0.0, began + due_s - clock()))
        sent.append(asyncio.create_task(send(due_s)))
    outcomes = await asyncio.gather(*sent)
    await pool.close()
    return outcomes


async def answer_steady_requests(plan: Arrivals) -> Findings:
    """L1."""
    async with serving(engine_options={"token_s": plan.token_s}) as server:
        outcomes = await send_at_rate(server, plan)
        num_audited = await audited(server, plan.count + 1)
    latencies_ms = [outcome.latency_s * 1000 for outcome in outcomes]
    engine_ms = plan.num_tokens * plan.token_s * 1000
    return Findings(
        bars=[
            Bar(name="answers that are not 200", value=sum(each.status != 200 for each in outcomes), at_most=0),
            Bar(name="requests missing in the audit log", value=plan.count + 1 - num_audited, at_most=0),
            Bar(name="p99 ms", value=percentile(latencies_ms, 99), at_most=50, is_speed=True),
            Bar(name="added p99 ms", value=percentile(latencies_ms, 99) - engine_ms, at_most=10, is_speed=True),
        ],
        figures={"requests": plan.count, "rate": plan.rate, "p50 ms": round(percentile(latencies_ms, 50), 2)},
    )


async def audited(server: Server, expected: int) -> int:
    """Count the entries of the audit log, as soon as those that are to be there are, or in vain for a while."""
    for _ in range(50):
        if (count := await asyncio.to_thread(server.num_audited)) >= expected:
            break
        await asyncio.sleep(0.1)
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Streams at the same time, each on the same clock."""

    count: int
    num_tokens: int
    token_s: float = 0.1


class _Choice(msgspec.Struct):
    delta: dict[str, str]
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


_read_chunk = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class Heard:
    """What came of one stream."""

    numbers: list[int]
    """Tokens in the order in which they came."""
    times_s: list[float]
    has_end: bool = False

    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.times_s, self.times_s[1:], strict=False)]


async def listen(server: Server, num_tokens: int, *, key: str | None = None, start_after_s: float = 0) -> Heard:
    """Read a whole stream of the clocked engine."""
    await asyncio.sleep(start_after_s)
    clock = asyncio.get_running_loop().time
    connection = await Connection.open(server)
    heard, finished = Heard([], []), 0
    try:
        async for data in connection.events(CHAT, key=key or server.key, body=chat(num_tokens)):
            if data == b"[DONE]":
                heard.has_end = finished == 1
                continue
            choice = _read_chunk(data).choices[0]
            finished += choice.finish_reason is not None
            if text := choice.delta.get("content"):
                heard.numbers.append(int(text.partition(" ")[0]))
                heard.times_s.append(clock())
    except (BrokenAnswerError, OSError):
        heard.has_end = False
    await connection.close()
    return heard


def lost_and_doubled(heard: list[Heard], num_tokens: int) -> tuple[int, int, int]:
    """Count tokens that are missing, came again, or came before their turn."""
    lost = doubled = reordered = 0
    for each in heard:
        counts = Counter(each.numbers)
        lost += sum(number not in counts for number in range(num_tokens))
        doubled += sum(count - 1 for count in counts.values())
        reordered += sum(after < before for before, after in zip(each.numbers, each.numbers[1:], strict=False))
    return lost, doubled, reordered


async def keep_many_streams(plan: Streams) -> Findings:
    """L2."""
    async with serving(engine_options={"token_s": plan.token_s}) as server:
        before = await server.census()
        # Clients do not all come in the same instant; the clocks of their answers then spread over a tick, too.
        starts = [number / plan.count for number in range(plan.count)]
        heard = await asyncio.gather(*(listen(server, plan.num_tokens, start_after_s=start) for start in starts))
        await asyncio.sleep(0.5)
        after = await server.census()
    lost, doubled, reordered = lost_and_doubled(heard, plan.num_tokens)
    gaps_ms = [gap * 1000 for each in heard for gap in each.gaps_s()]
    return Findings(
        bars=[
            Bar(name="events lost", value=lost, at_most=0),
            Bar(name="events doubled", value=doubled, at_most=0),
            Bar(name="events out of order", value=reordered, at_most=0),
            Bar(name="streams without an end", value=sum(not each.has_end for each in heard), at_most=0),
            Bar(name="tasks left", value=after["tasks"] - before["tasks"], at_most=0),
            Bar(
                name="gap between tokens p99 ms",
                value=percentile(gaps_ms, 99),
                at_most=plan.token_s * 1000 + 50,
                is_speed=True,
            ),
        ],
        figures={"streams": plan.count, "tokens": plan.count * plan.num_tokens, "p50 ms": percentile(gaps_ms, 50)},
    )


L1 = Row(
    id="L1",
    claim="200 requests a second, sent whether or not the last are answered: all answered, all in the audit log",
    sizes={"ci": Arrivals(rate=50, seconds=6), "long": Arrivals(rate=200, seconds=180)},
    run=answer_steady_requests,
)
L2 = Row(
    id="L2",
    claim="300 streams of 10 tokens a second: no event lost, doubled or out of order",
    sizes={"ci": Streams(count=100, num_tokens=50), "long": Streams(count=300, num_tokens=1800)},
    run=keep_many_streams,
)
