"""HTTP framing: whatever bytes come, no request is seen that is not there, and nothing falls over.

Each case is a connection of its own. Directly, what the application was given is compared with a strict reading of the
same bytes: it may see less, never more. Through nginx, it is compared with what nginx says that it passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reliability.framing_cases import make_case
from reliability.http_grammar import MalformedError, Understood, read_answers, read_requests
from reliability.nginx import nginx_before
from reliability.server import Server, serving
from reliability.verdict import Bar, Findings, Row, RowSkipped

SILENCE_S = 0.3
"""A server that says nothing for this long waits for the rest of a body that never comes."""
AT_ONCE = 48
BATCH = 2000
_NAME = re.compile(rb"case\d+-")
_SHOWN = 5
_SHOWN_LOG_CHARS = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzzing:
    """How many cases each way."""

    direct: int
    through_nginx: int
    seed: int | None = None
    """None: a new one, which the findings have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A case, and what came back."""

    number: int
    sent: bytes
    answer: bytes


@dataclass(slots=True)
class Wrongs:
    """What went wrong, with a few of the cases."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def note(self, kind: str, case: object) -> None:
        self.counts[kind] += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(f"{kind}: {case!r}")


def address_of(number: int) -> str:
    """Return the loopback address that a case comes from: its requests are known by it, whatever is in them."""
    return f"127.{1 + number // 65_536}.{number // 256 % 256}.{number % 256}"


async def exchange(host: str, port: int, number: int, opening: bytes, data: bytes) -> Exchange:
    """Send a case over a connection of its own and read until the server closes or falls silent."""
    answer = b""
    with contextlib.suppress(ConnectionError):  # a reset while it is being sent is an answer, too
        reader, writer = await asyncio.open_connection(host, port, local_addr=(address_of(number), 0))
        with contextlib.suppress(TimeoutError):
            if opening:
                writer.write(opening)
                answer = await asyncio.wait_for(reader.read(1), SILENCE_S)
            writer.write(data)
            while chunk := await asyncio.wait_for(reader.read(1 << 16), SILENCE_S):
                answer += chunk
        writer.transport.abort()
    return Exchange(number=number, sent=opening + data, answer=answer)


async def exchange_some(host: str, port: int, dice: random.Random, numbers: range) -> list[Exchange]:
    """Send some cases, many at a time."""
    seats = asyncio.Semaphore(AT_ONCE)
    cases = [(number, make_case(dice, f"case{number}")) for number in numbers]

    async def one(number: int, opening: bytes, data: bytes) -> Exchange:
        async with seats:
            return await exchange(host, port, number, opening, data)

    return await asyncio.gather(*(one(number, *case) for number, case in cases))


def sees_too_much(sent: bytes, seen: Sequence[Understood]) -> bool:
    """Tell whether requests were seen, or bodies, that a strict reading of the same bytes does not find there."""
    there = read_requests(sent)
    return len(seen) > len(there) or not all(_agrees(one, other) for one, other in zip(seen, there, strict=False))


def _agrees(seen: Understood, there: Understood) -> bool:
    # Where a request was refused by its head, nobody read its body.
    target = re.sub(r"^https?://[^/]*", "", there.target).partition("#")[0]
    return seen.method == there.method and seen.target == target and there.body.startswith(seen.body)


def judge_names(one: Exchange, wrongs: Wrongs) -> None:
    """Look for names of other cases, which the server says where it does not know a model."""
    if any(name not in one.sent for name in _NAME.findall(one.answer)):
        wrongs.note("answers for somebody else", (one.sent, one.answer))


def judge_answer(one: Exchange, methods: Sequence[str], wrongs: Wrongs) -> None:
    """Look at what a client got: whole answers in turn, its own, no failure of the server's, nothing between them."""
    judge_names(one, wrongs)
    try:
        answers = read_answers(one.answer, methods)
    except MalformedError as reason:
        wrongs.note("answers with something else between", (str(reason), one.sent, one.answer))
        return
    if any(answer.status >= 500 for answer in answers):
        wrongs.note("failures of the server", (one.sent, one.answer))
    there = read_requests(one.sent)
    num_whole = sum(request.is_whole for request in there[: len(methods)])
    if not all(answer.request_id for answer in answers[:num_whole]):
        wrongs.note("refusals in the place of an answer", (one.sent, one.answer))


async def judge_directly(server: Server, dice: random.Random, numbers: range, wrongs: Wrongs) -> None:
    """Send cases to the server itself."""
    exchanges = await exchange_some(server.host, server.port, dice, numbers)
    seen: dict[str, list[Understood]] = defaultdict(list)
    for note in (await server.census())["seen"]:
        seen[note["client"]].append(Understood(note["method"], note["target"], note["body"]))
    for one in exchanges:
        requests = seen.pop(address_of(one.number), [])
        if sees_too_much(one.sent, requests):
            wrongs.note("requests that are not there", (one.sent, requests))
        judge_answer(one, [request.method for request in requests], wrongs)
    if seen:
        wrongs.note("requests of nobody", seen)


async def judge_through_nginx(server: Server, dice: random.Random, numbers: range, wrongs: Wrongs) -> int:
    """Send cases to an nginx before the server; return how many requests nginx passed on."""
    async with nginx_before(server) as nginx:
        num_passed_on = 0
        for start in range(numbers.start, numbers.stop, BATCH):
            batch = range(start, min(start + BATCH, numbers.stop))
            exchanges = await exchange_some(nginx.host, nginx.port, dice, batch)
            await asyncio.sleep(1)  # until what nginx was waiting for is logged
            seen: Sequence[Mapping[str, Any]] = (await server.census())["seen"]
            passed_on = Counter(nginx.passed_on())
            num_passed_on += sum(passed_on.values())
            for note in seen:
                if passed_on[note["edge_id"]] != 1:
                    wrongs.note("requests that nginx did not send", note)
                passed_on[note["edge_id"]] -= 1
            for one in exchanges:
                judge_names(one, wrongs)
    return num_passed_on


async def survive_odd_framing(plan: Fuzzing) -> Findings:
    """F8."""
    seed = random.randrange(1 << 32) if plan.seed is None else plan.seed
    dice, wrongs = random.Random(seed), Wrongs()
    figures: dict[str, float | str] = {"cases": plan.direct, "seed": seed}
    timeouts = {"body_timeout_s": 5, "header_timeout_s": 5}
    # Without any key the server is open: requests get as far as the model.
    async with serving(
        engine_options={"token_s": 0.002}, server_options=timeouts, tenants=(), notes_requests=True
    ) as server:
        for start in range(0, plan.direct, BATCH):
            await judge_directly(server, dice, range(start, min(start + BATCH, plan.direct)), wrongs)
        try:
            numbers = range(plan.direct, plan.direct + plan.through_nginx)
            figures["passed on by nginx"] = await judge_through_nginx(server, dice, numbers, wrongs)
            figures["cases through nginx"] = plan.through_nginx
        except RowSkipped as reason:
            figures["without nginx"] = str(reason)
        is_alive, log = server.is_alive, server.log
    kinds = (
        "requests that are not there",
        "requests of nobody",
        "answers for somebody else",
        "answers with something else between",
        "refusals in the place of an answer",
        "failures of the server",
        "requests that nginx did not send",
    )
    if "Traceback" in log:
        wrongs.examples.append(log[max(0, log.index("Traceback") - _SHOWN_LOG_CHARS) :][: 2 * _SHOWN_LOG_CHARS])
    if wrongs.examples:
        figures["examples"] = "\n".join(wrongs.examples)
    return Findings(
        bars=[
            *(Bar(name=kind, value=wrongs.counts[kind], at_most=0) for kind in kinds),
            Bar(name="deaths", value=0 if is_alive else 1, at_most=0),
            Bar(name="failures in the log", value=log.count("Traceback"), at_most=0),
        ],
        figures=figures,
    )


F8 = Row(
    id="F8",
    claim="50,000 odd byte strings, directly and through nginx: no request is seen that is not there, nothing dies",
    sizes={"ci": Fuzzing(direct=1500, through_nginx=1000), "long": Fuzzing(direct=30_000, through_nginx=20_000)},
    run=survive_odd_framing,
)
