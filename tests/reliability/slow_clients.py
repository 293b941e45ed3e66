"""Slow clients: who sends slowly is cut, who reads slowly costs little, and others notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from reliability.connection import BrokenAnswerError, Connection, write_request
from reliability.load import CHAT, Arrivals, Streams, chat, listen, lost_and_doubled, send_at_rate
from reliability.server import Server, serving
from reliability.verdict import Bar, Findings, Row, percentile

SMALL_BUFFER = 4096
LONG_TOKEN = 4000
"""Characters: a reader that does not read fills every buffer in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCrowd:
    """How many there are of each kind, and the healthy load beside them."""

    idle: int
    slow_senders: int
    slow_readers: int
    limit_s: float
    """What the server is told for headers and for readers."""
    healthy: Arrivals

    @property
    def reader_stays_s(self) -> float:
        """A reader that was not cut by then never will be: first it has to fill every buffer."""
        return 3 * self.limit_s


@dataclass(slots=True)
class Visits:
    """What became of slow clients."""

    count: int = 0
    cut: int = 0


async def serve_beside_slow_clients(plan: SlowCrowd) -> Findings:
    """L6."""
    limits = {"header_timeout_s": plan.limit_s, "send_timeout_s": plan.limit_s}
    engine = {"token_s": plan.healthy.token_s, "padding": LONG_TOKEN}
    senders, readers = Visits(), Visits()
    async with serving(engine_options=engine, server_options=limits) as server:
        alone = await send_at_rate(server, plan.healthy)
        before = await server.census()
        idle = [await open_and_ask(server) for _ in range(plan.idle)]
        async with asyncio.TaskGroup() as crowd:
            for place in range(plan.slow_senders):
                visit = partial(send_slowly, server, plan.limit_s)
                crowd.create_task(come_again(visit, senders, plan, place / plan.slow_senders))
            for place in range(plan.slow_readers):
                visit = partial(read_nothing, server, plan.reader_stays_s)
                crowd.create_task(come_again(visit, readers, plan, place / plan.slow_readers))
            beside = await send_at_rate(server, plan.healthy)
        still_served = sum([await serves_again(connection, server) for connection in idle])
        await asyncio.sleep(1)
        after = await server.census()
    alone_ms = percentile([each.latency_s * 1000 for each in alone], 99)
    beside_ms = percentile([each.latency_s * 1000 for each in beside], 99)
    return Findings(
        bars=[
            Bar(
                name="answers that are not 200", value=sum(each.status != 200 for each in [*alone, *beside]), at_most=0
            ),
            Bar(name="visits of slow senders", value=senders.count, at_least=plan.slow_senders),
            Bar(name="visits of slow readers", value=readers.count, at_least=plan.slow_readers),
            Bar(name="slow senders that were not cut", value=senders.count - senders.cut, at_most=0),
            Bar(name="slow readers that were not cut", value=readers.count - readers.cut, at_most=0),
            Bar(name="answers left open", value=after["open_answers"], at_most=0),
            Bar(name="sockets left", value=after["sockets"] - before["sockets"], at_most=plan.idle),
            Bar(name="p99, times that alone", value=beside_ms / alone_ms, at_most=2, is_speed=True),
        ],
        figures={
            "idle": plan.idle,
            "slow senders": plan.slow_senders,
            "slow readers": plan.slow_readers,
            "alone p99 ms": round(alone_ms, 1),
            "beside p99 ms": round(beside_ms, 1),
            "idle connections still open": still_served,
        },
    )


async def come_again(visit: Callable[[], Awaitable[bool]], visits: Visits, plan: SlowCrowd, share: float) -> None:
    """Visit again and again while the healthy load lasts; the first time after a `share` of the longest visit."""
    clock = asyncio.get_running_loop().time
    ends = clock() + plan.healthy.seconds
    await asyncio.sleep(share * plan.reader_stays_s)
    while clock() < ends:
        visits.count += 1
        is_cut = await visit()
        visits.cut += is_cut


async def open_and_ask(server: Server) -> Connection:
    """Ask once and keep the connection."""
    connection = await Connection.open(server)
    await connection.ask("GET", "/livez")
    return connection


async def serves_again(connection: Connection, server: Server) -> bool:
    """Tell whether an idle connection still answers; the server may have closed it after its time."""
    try:
        return (await connection.ask("GET", "/livez")).status == 200
    except (BrokenAnswerError, ConnectionError):
        return False
    finally:
        await connection.close()


async def send_slowly(server: Server, limit_s: float) -> bool:
    """Send a header a byte at a time; tell whether the server gave up within a few times its limit."""
    connection = await Connection.open(server)
    ended = asyncio.create_task(connection.reader.read())
    for byte in b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 100:
        if ended.done():
            break
        with contextlib.suppress(ConnectionError):
            connection.writer.write(bytes([byte]))
        await asyncio.wait([ended], timeout=limit_s / 8)
    is_cut = ended.done()
    ended.cancel()
    connection.writer.close()
    return is_cut


async def read_nothing(server: Server, stays_s: float) -> bool:
    """Ask for an endless answer and do not read it for a while; tell whether the server closed the connection."""
    connection = await Connection.open(server, receive_bytes=SMALL_BUFFER)
    connection.writer.transport.pause_reading()
    connection.writer.write(write_request("POST", CHAT, key=server.key, body=chat(100_000) | {"stream": True}))
    await asyncio.sleep(stays_s)
    connection.writer.transport.resume_reading()
    try:
        async with asyncio.timeout(stays_s):
            while await connection.reader.read(1 << 16):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    else:
        return True
    finally:
        connection.writer.transport.abort()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowReaders:
    """Readers of a byte a second beside ordinary streams."""

    count: int
    others: Streams


async def feed_slow_readers(plan: SlowReaders) -> Findings:
    """C8."""
    async with serving(engine_options={"token_s": plan.others.token_s, "padding": 200}) as server:
        alone = await asyncio.gather(*(listen(server, plan.others.num_tokens) for _ in range(plan.others.count)))
        before = await server.census()
        readers = [asyncio.create_task(read_a_byte_a_second(server)) for _ in range(plan.count)]
        beside_task = asyncio.gather(*(listen(server, plan.others.num_tokens) for _ in range(plan.others.count)))
        most = 0
        while not beside_task.done():
            most = max(most, (await server.census())["resident_bytes"])
            await asyncio.wait([beside_task], timeout=0.5)
        beside = await beside_task
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        await asyncio.sleep(2)
        after = await server.census()
    gaps_ms = [percentile([gap * 1000 for each in heard for gap in each.gaps_s()], 99) for heard in (alone, beside)]
    lost, doubled, reordered = lost_and_doubled(beside, plan.others.num_tokens)
    return Findings(
        bars=[
            Bar(name="events of others lost, doubled or out of order", value=lost + doubled + reordered, at_most=0),
            Bar(name="answers left open", value=after["open_answers"], at_most=0),
            Bar(name="MB a slow reader", value=(most - before["resident_bytes"]) / plan.count / 1e6, at_most=1),
            Bar(name="others' gap p99, times that alone", value=gaps_ms[1] / gaps_ms[0], at_most=1.2, is_speed=True),
        ],
        figures={
            "slow readers": plan.count,
            "alone p99 ms": round(gaps_ms[0], 1),
            "beside p99 ms": round(gaps_ms[1], 1),
        },
    )


async def read_a_byte_a_second(server: Server) -> None:
    """Read an endless answer very slowly."""
    connection = await Connection.open(server, receive_bytes=SMALL_BUFFER)
    transport = connection.writer.transport
    transport.pause_reading()
    connection.writer.write(write_request("POST", CHAT, key=server.key, body=chat(100_000) | {"stream": True}))
    sock = connection.writer.get_extra_info("socket")
    try:
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                sock.recv(1)
    finally:
        transport.abort()


L6 = Row(
    id="L6",
    claim="1,000 idle connections, always 200 slow senders and 200 that do not read: others are served as quickly",
    sizes={
        "ci": SlowCrowd(idle=200, slow_senders=40, slow_readers=40, limit_s=2, healthy=Arrivals(rate=25, seconds=6)),
        "long": SlowCrowd(
            idle=1000, slow_senders=200, slow_readers=200, limit_s=10, healthy=Arrivals(rate=50, seconds=180)
        ),
    },
    run=serve_beside_slow_clients,
)
C8 = Row(
    id="C8",
    claim="100 clients read a byte a second: at most 1 MB each, and others' tokens come as evenly as without them",
    sizes={
        "ci": SlowReaders(count=40, others=Streams(count=10, num_tokens=50)),
        "long": SlowReaders(count=100, others=Streams(count=50, num_tokens=600)),
    },
    run=feed_slow_readers,
)
