"""Lists over pages, against a list in memory."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.client import AsyncClient, Client, NotFoundError, RetryPolicy


def server_of(ids: list[str], asked: list[str]) -> Callable[[httpx.Request], httpx.Response]:
    """Answer as `/v1/files` does."""

    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.params
        asked.append(query.get("after", ""))
        begin = ids.index(query["after"]) + 1 if "after" in query else 0
        end = begin + int(query["limit"])
        body = {"data": [{"id": name} for name in ids[begin:end]], "has_more": end < len(ids)}
        return httpx.Response(200, content=json.dumps(body))

    return answer


ids_of_files = st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=12)


@given(ids_of_files, st.integers(1, 5))
def test_a_list_is_every_item_once_in_order_with_no_more_calls_than_pages(ids: list[str], page_size: int) -> None:
    asked: list[str] = []
    with Client(transport=httpx.MockTransport(server_of(ids, asked))) as client:
        assert [file.id for file in client.files.list(page_size=page_size)] == ids
    assert len(asked) == max(1, -(-len(ids) // page_size))

    async def read() -> list[str]:
        async with AsyncClient(transport=httpx.MockTransport(server_of(ids, asked))) as client:
            return [file.id async for file in client.files.list(page_size=page_size)]

    assert asyncio.run(read()) == ids


@given(ids_of_files, st.integers(1, 5), st.integers(0, 12))
def test_pages_that_are_not_read_are_not_asked_for(ids: list[str], page_size: int, num_read: int) -> None:
    asked: list[str] = []
    with Client(transport=httpx.MockTransport(server_of(ids, asked))) as client:
        files = client.files.list(page_size=page_size)
        assert [file.id for file in itertools.islice(files, num_read)] == ids[:num_read]
        files.close()
    assert len(asked) <= -(-num_read // page_size) + (num_read > len(ids))


def test_an_empty_page_ends_a_list_whatever_it_says() -> None:
    answer = httpx.Response(200, json={"data": [], "has_more": True})
    with Client(transport=httpx.MockTransport(lambda _: answer)) as client:
        assert list(client.files.list()) == []


def test_a_page_that_fails_is_an_error_and_no_short_list() -> None:
    answers = iter(
        [
            httpx.Response(200, json={"data": [{"id": "a"}], "has_more": True}),
            httpx.Response(404, json={"error": {"message": "gone"}}),
        ]
    )
    with Client(transport=httpx.MockTransport(lambda _: next(answers)), retries=RetryPolicy(max_retries=0)) as client:
        files = client.files.list()
        assert next(files).id == "a"
        with pytest.raises(NotFoundError, match="gone"):
            next(files)
