"""Several asynchronous generators read as one, in the order in which they yield."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def merge_streams(streams: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[Item]:
    """Yield the items of all streams; an error in one ends all, and closing this closes all.

    Each stream is read one item ahead at most, so that a slow reader holds them back.
    """
    reads = {asyncio.ensure_future(_read(stream)): stream for stream in streams}
    try:
        while reads:
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                stream = reads.pop(read)
                for item in read.result():
                    reads[asyncio.ensure_future(_read(stream))] = stream
                    yield item
    finally:
        await _cancel(reads.keys())
        for stream in streams:
            await stream.aclose()


async def _read(stream: AsyncGenerator[Item]) -> tuple[Item, ...]:
    """Read one item; nothing where the stream has ended."""
    async for item in stream:
        return (item,)
    return ()


async def _cancel(reads: Collection[asyncio.Future[tuple[Item, ...]]]) -> None:
    for read in reads:
        read.cancel()
    if reads:
        await asyncio.wait(reads)
    for read in reads:
        if not read.cancelled():
            _ = read.exception()
