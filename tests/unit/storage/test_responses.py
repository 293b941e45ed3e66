"""Stored responses: found by their tenant alone, until they expire, and ended once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.errors import RequestError
from qwenstack.storage import Database, ServerLease, StoredResponse, StoredResponses, open_database
from qwenstack.storage.responses import MOST_TURNS


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> StoredResponses:
    return StoredResponses(database, retention_s=100, clock=clock)


def response(name: str, *, tenant: str = "t", previous: str | None = None, at_s: float = 1000.0) -> StoredResponse:
    return StoredResponse(
        id=name,
        tenant=tenant,
        status="completed",
        created_at_ms=int(at_s * 1000),
        items="[]",
        document=f'"{name}"',
        previous_id=previous,
    )


def test_a_response_is_found_by_its_tenant_until_it_expires(store: StoredResponses, clock: Clock) -> None:
    store.put(response("a"))
    assert store.find("a", tenant="t") == response("a")
    assert store.find("a", tenant="u") is None
    assert not store.delete("a", tenant="u")
    clock.now = 1100.0
    assert store.find("a", tenant="t") is None
    assert store.sweep(max_tenant_bytes=1000) == 1
    assert store.sweep(max_tenant_bytes=1000) == 0


@given(lengths=st.lists(st.integers(0, 30), max_size=8), limit=st.integers(1, 120))
@settings(deadline=None, max_examples=30)
def test_sec_09_of_a_tenant_that_keeps_too_much_the_oldest_go(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], limit: int
) -> None:
    store = StoredResponses(
        open_database(f"sqlite:///{tmp_path_factory.mktemp('d') / 'q.db'}"), retention_s=1e6, clock=lambda: 1000.0
    )
    for number, length in enumerate(lengths):
        store.put(replace(response(f"r{number}", at_s=number), document="x" * length))
    store.put(response("other", tenant="u"))
    store.sweep(max_tenant_bytes=limit)
    kept, num_bytes = [], 0
    for number, length in reversed(list(enumerate(lengths))):
        num_bytes += length + len("[]")
        if num_bytes <= limit:
            kept.append(f"r{number}")
    assert [name for name in (f"r{n}" for n in range(len(lengths))) if store.find(name, tenant="t")] == kept[::-1]
    assert (store.find("other", tenant="u") is None) == (limit < len('[]"other"'))


def test_a_conversation_is_read_from_its_beginning(store: StoredResponses) -> None:
    store.put(response("a"))
    store.put(response("b", previous="a"))
    store.put(response("c", previous="b"))
    assert [turn.id for turn in store.conversation("c", tenant="t", max_bytes=100)] == ["a", "b", "c"]
    assert store.conversation("c", tenant="u", max_bytes=100) == []
    with pytest.raises(RequestError, match="more than 1024 turns or 10 bytes"):
        store.conversation("c", tenant="t", max_bytes=10)
    store.delete("a", tenant="t")
    with pytest.raises(RequestError, match="goes back to 'a', which was deleted"):
        store.conversation("c", tenant="t", max_bytes=100)


def test_sec_09_a_conversation_goes_back_so_far_alone(store: StoredResponses) -> None:
    store.put(response("a", previous="b"))
    store.put(response("b", previous="a"))  # no client can make such a ring; a damaged database can have one
    with pytest.raises(RequestError, match=str(MOST_TURNS)):
        store.conversation("a", tenant="t", max_bytes=1 << 30)


def test_what_a_dead_server_began_is_abandoned_and_ends_once(
    store: StoredResponses, database: Database, clock: Clock
) -> None:
    lease = ServerLease(database, lease_s=5, clock=clock)
    lease.renew()
    begun = replace(response("a"), status="in_progress", owner=lease.id)
    store.put(begun)
    assert store.begun_by(lease.id) == {"a": "t"}
    clock.now += 5
    lease.renew()
    clock.now += 5
    assert store.abandoned() == []
    clock.now += 0.01
    assert store.abandoned() == [begun]
    assert store.finish(begun, status="failed", document="1")
    assert not store.finish(begun, status="completed", document="2")
    ended = store.find("a", tenant="t")
    assert ended == replace(begun, status="failed", document="1", owner=None)
    assert store.abandoned() == []


def test_a_server_that_stops_is_dead_at_once(store: StoredResponses, database: Database) -> None:
    lease = ServerLease(database, lease_s=5, clock=lambda: 1000.0)
    lease.renew()
    store.put(replace(response("a"), owner=lease.id))
    lease.release()
    assert [abandoned.id for abandoned in store.abandoned()] == ["a"]
