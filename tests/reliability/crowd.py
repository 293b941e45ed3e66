"""A tenant that keeps many requests open, in a process of its own: what it waits for is nobody else's wait.

    python -m reliability.crowd SERVER SIZE KEY

asks until its standard input ends, then prints how many requests were answered and how many were not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import msgspec

from reliability.connection import BrokenAnswerError, Connection
from reliability.server import TESTS, Address, allow_many_connections

_LONGEST_S = 60.0


@dataclass(slots=True)
class Tally:
    """What became of the crowd's requests, once the crowd has gone."""

    answers: int = 0
    failures: int = 0


def completion(number: int) -> dict[str, object]:
    """Return a request for 40 tokens after a prompt of 32."""
    prompt = [(number * 7 + at) % 250 for at in range(32)]
    return {"model": "default", "prompt": prompt, "max_tokens": 40, "ignore_eos": True, "temperature": 0}


@contextlib.asynccontextmanager
async def crowding(address: Address, *, size: int, key: str) -> AsyncGenerator[Tally]:
    """Have so many others ask for as long as the block lasts; the tally is filled when it ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "reliability.crowd", f"{address.host}:{address.port}", str(size), key),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )
    tally = Tally()
    try:
        yield tally
    finally:
        out, _ = await process.communicate(b"")
    done = msgspec.json.decode(out, type=Tally)
    tally.answers, tally.failures = done.answers, done.failures


async def ask_until(address: Address, key: str, number: int, is_over: asyncio.Event, tally: Tally) -> None:
    """Ask again as soon as there is an answer."""
    while not is_over.is_set():
        try:
            async with asyncio.timeout(_LONGEST_S):
                connection = await Connection.open(address)
                answer = await connection.ask("POST", "/v1/completions", key=key, body=completion(number))
            tally.answers += answer.status == 200
            tally.failures += answer.status != 200
            await connection.close()
        except (BrokenAnswerError, OSError, TimeoutError):
            tally.failures += 1
            await asyncio.sleep(0.1)


async def crowd(address: Address, size: int, key: str) -> Tally:
    """Ask until standard input ends."""
    allow_many_connections()
    is_over, tally = asyncio.Event(), Tally()
    asking = [asyncio.create_task(ask_until(address, key, number, is_over, tally)) for number in range(size)]
    await asyncio.to_thread(sys.stdin.read)
    is_over.set()
    await asyncio.gather(*asking)
    return tally


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    result = asyncio.run(crowd(Address(host=host, port=int(port)), int(sys.argv[2]), sys.argv[3]))
    sys.stdout.buffer.write(msgspec.json.encode(result))
