"""When a call is sent again: decided from values, tested without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    OverloadedError,
    RateLimitError,
    RetryPolicy,
    StatusError,
)
from qwenstack.client.call import Call, delete, get, post
from qwenstack.client.errors import ClientError, read_error
from qwenstack.client.retry import connection_failure
from qwenstack.client.types import Model

READ = get("/x", Model)
ASK = post("/x", Model, {})
MAKE = post("/x", Model, {}, is_repeatable=False)
TAKE = delete("/x", Model)
UNSENT, BROKEN = httpx.ConnectError("refused"), httpx.ReadError("reset")
POLICY = RetryPolicy(max_retries=3, chance=lambda: 0.0)


def wait_s(call: Call[Any], cause: int | httpx.TransportError, *, attempt: int = 0, **headers: str) -> float | None:
    failure: ClientError = (
        read_error(cause, {name.replace("_", "-"): value for name, value in headers.items()}, b"")
        if isinstance(cause, int)
        else connection_failure(cause)
    )
    return POLICY.delay_s(call, failure, cause, attempt=attempt)


@pytest.mark.parametrize(
    ("call", "cause", "is_repeated"),
    [
        (READ, UNSENT, True),
        (ASK, UNSENT, True),
        (MAKE, UNSENT, True),
        (TAKE, UNSENT, True),
        (READ, BROKEN, True),
        (ASK, BROKEN, True),
        (MAKE, BROKEN, False),
        (TAKE, BROKEN, False),
        (TAKE, httpx.ReadTimeout("slow"), False),
        (READ, 429, True),
        (ASK, 429, True),
        (MAKE, 429, True),
        (TAKE, 429, True),
        (MAKE, 503, True),
        (TAKE, 503, True),
        (READ, 502, True),
        (ASK, 502, False),
        (MAKE, 500, False),
        (TAKE, 502, False),
        (READ, 400, False),
        (READ, 401, False),
        (READ, 404, False),
        (READ, 307, False),
    ],
)
def test_only_what_cannot_do_harm_is_sent_again(call: Call[Any], cause: Any, is_repeated: bool) -> None:
    assert (wait_s(call, cause) is not None) == is_repeated
    assert wait_s(call, cause, attempt=3) is None


@pytest.mark.parametrize(("call", "is_repeated"), [(READ, True), (ASK, True), (MAKE, False), (TAKE, False)])
def test_what_may_be_done_but_not_written_down_is_not_done_twice(call: Call[Any], is_repeated: bool) -> None:
    failure = read_error(503, {"retry-after": "1"}, b'{"error": {"message": "m", "code": "storage_unavailable"}}')
    assert (POLICY.delay_s(call, failure, 503, attempt=0) is not None) == is_repeated
    refused = read_error(503, {}, b'{"error": {"message": "m", "code": "overloaded"}}')
    assert POLICY.delay_s(call, refused, 503, attempt=0) is not None


def test_waits_double_and_have_an_end() -> None:
    policy = RetryPolicy(max_retries=9, chance=lambda: 0.0)
    failure = connection_failure(UNSENT)
    assert [policy.delay_s(READ, failure, UNSENT, attempt=n) for n in range(6)] == [0.5, 1, 2, 4, 8, 8]


@given(st.integers(0, 8), st.floats(0, 1))
def test_chance_takes_at_most_half_of_a_wait(attempt: int, chance: float) -> None:
    policy = RetryPolicy(max_retries=9, chance=lambda: chance)
    longest = min(8.0, 0.5 * 2**attempt)
    wait = policy.delay_s(READ, connection_failure(UNSENT), UNSENT, attempt=attempt)
    assert wait is not None
    assert longest / 2 <= wait <= longest


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("7", 7),
        ("0", 0),
        ("0.25", 0.25),
        ("61", None),
        ("4353", None),
        ("-1", 0.5),
        ("soon", 0.5),
        ("nan", 0.5),
        ("inf", 0.5),
    ],
)
def test_the_server_says_how_long_if_that_is_not_too_long(said: str, expected: float | None) -> None:
    assert wait_s(ASK, 429, retry_after=said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [("60", 60), ("4353", 4353), ("86400", 86400), ("-1", None), ("nan", None), ("inf", None), ("1e999", None)],
)
def test_an_error_says_how_long_the_server_asked_to_wait(said: str, expected: float | None) -> None:
    assert read_error(429, {"retry-after": said}, b"").retry_after_s == expected


def test_a_wait_until_tomorrow_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    answers: list[Callable[[], httpx.Response]] = [lambda: httpx.Response(429, headers={"retry-after": "4353"})]
    with client_for(answers, waits, monkeypatch) as client, pytest.raises(RateLimitError) as raised:
        client.models.list()
    assert (raised.value.retry_after_s, waits) == (4353, [])


def client_for(answers: list[Callable[[], httpx.Response]], waits: list[float], monkeypatch: Any) -> Client:
    monkeypatch.setattr("qwenstack.client.transport.time.sleep", waits.append)
    return Client(transport=httpx.MockTransport(lambda _: answers.pop(0)()), retries=POLICY)


def test_a_call_succeeds_after_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> httpx.Response:
        raise UNSENT

    answers: list[Callable[[], httpx.Response]] = [
        refuse,
        lambda: httpx.Response(429, headers={"retry-after": "3"}),
        lambda: httpx.Response(200, json={"id": "m", "from_the_future": [1]}),
    ]
    waits: list[float] = []
    with client_for(answers, waits, monkeypatch) as client:
        assert client.models.retrieve("m").id == "m"
    assert waits == [0.5, 3]


def test_the_last_failure_is_raised_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> httpx.Response:
        raise UNSENT

    waits: list[float] = []
    with client_for([refuse] * 4, waits, monkeypatch) as client, pytest.raises(ConnectionFailedError) as raised:
        client.models.list()
    assert raised.value.__cause__ is UNSENT
    assert waits == [0.5, 1, 2]


def delete_file(kind: type[Client | AsyncClient], transport: httpx.MockTransport) -> None:
    """Delete `file-1` with a client of either kind, which sends again at once where it may."""
    client = kind(transport=transport, retries=RetryPolicy(first_delay_s=0))
    if isinstance(client, Client):
        with client:
            client.files.delete("file-1")
        return

    async def whole(client: AsyncClient) -> None:
        async with client:
            await client.files.delete("file-1")

    asyncio.run(whole(client))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_deletion_that_broke_off_is_not_told_as_not_found(kind: type[Client | AsyncClient]) -> None:
    files = {"/v1/files/file-1"}

    def take_away(request: httpx.Request) -> httpx.Response:
        if request.url.path not in files:
            return httpx.Response(404)
        files.remove(request.url.path)
        raise BROKEN

    with pytest.raises(ConnectionFailedError, match="reset"):
        delete_file(kind, httpx.MockTransport(take_away))
    assert not files


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimitError), (503, OverloadedError)])
def test_what_a_proxy_says_is_an_error_too(status: int, kind: type[StatusError]) -> None:
    error = read_error(status, {}, b"<html>\n<h1>no</h1>" + b"x" * 9999)
    assert type(error) is kind
    assert str(status) in str(error)
    assert len(str(error)) < 400
