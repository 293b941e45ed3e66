"""Lists that come in pages: each page knows the call for the one after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from qwenstack.client.call import Call, get, reader
from qwenstack.client.retry import Emit, RetryPolicy, Source, exchange

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some of the items, and how to get more."""

    items: list[Item]
    following: Call[Page[Item]] | None


class _Listed(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool = False


def pages(path: str, kind: type[Item], place_of: Callable[[Item], object], **query: object) -> Call[Page[Item]]:
    """Describe reading a list from its first page on; `after` takes the place of a page's last item."""
    first = get(path, _Listed, **query)
    read_list, read_item = first.read, reader(kind)

    def read(body: bytes) -> Page[Item]:
        listed = read_list(body)
        items = [read_item(item) for item in listed.data]
        is_last = not (listed.has_more and items)
        after = None if is_last else place_of(items[-1])
        return Page(items, None if is_last else pages(path, kind, place_of, **{**query, "after": after}))

    return Call(method="GET", path=path, read=read, query=first.query)


def each_item(policy: RetryPolicy, call: Call[Page[Item]] | None) -> Source[Item]:
    """Bring the items of one page after the other; the next is asked for when it is needed."""
    while call is not None:
        page = yield from exchange(call, policy)
        for item in page.items:
            yield Emit(item)
        call = page.following
