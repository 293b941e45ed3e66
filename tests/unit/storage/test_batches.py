"""Stored batches: one server runs each, and each line has one answer."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from qwenstack.core.errors import RequestError, StorageError
from qwenstack.storage import (
    LONGEST_PUT_OFF_S,
    BatchTokens,
    Database,
    ServerLease,
    StoredBatch,
    StoredBatches,
    StoredFile,
    StoredFiles,
    open_database,
)
from qwenstack.storage.batches import MOST_UNFINISHED
from qwenstack.storage.schema import batches


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
def store(database: Database, clock: Clock) -> StoredBatches:
    return StoredBatches(database, clock=clock)


@pytest.fixture
def file(tmp_path: Path, database: Database) -> StoredFile:
    files = StoredFiles(database, tmp_path / "files", quota_bytes=100)
    return files.keep(files.begin(), tenant="t", purpose="batch", filename="f")


def batch(name: str, file: StoredFile, *, tenant: str = "t") -> StoredBatch:
    return StoredBatch(
        id=name,
        tenant=tenant,
        caller="{}",
        endpoint="/v1/x",
        input_file_id=file.id,
        metadata="{}",
        created_at_ms=5,
        expires_at_ms=10**12,
    )


def lease_of(database: Database, clock: Clock) -> ServerLease:
    lease = ServerLease(database, lease_s=10, clock=clock)
    lease.renew()
    return lease


def test_two_servers_never_run_one_batch(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    first, second = (lease_of(database, clock) for _ in range(2))
    assert store.create(batch("b", file))
    claimed = store.claim(first.id)
    assert claimed is not None
    assert store.claim(second.id) is None
    assert store.claim(first.id, running=["b"]) is None
    assert store.advance("b", first.id, since="validating", to="in_progress", num_total=2)
    assert store.answer("b", first.id, number=1, line="one", is_error=False)
    clock.now += 10.1
    second.renew()
    taken = store.claim(second.id)
    assert taken is not None
    assert (taken.status, taken.num_completed) == ("in_progress", 1)
    # The first one comes back to life, and its writes count no more.
    assert not store.is_going_on("b", first.id)
    assert not store.answer("b", first.id, number=2, line="late", is_error=False)
    assert not store.advance("b", first.id, since="in_progress", to="finalizing")
    assert store.answered("b") == {1}
    assert store.answer("b", second.id, number=2, line="two", is_error=True)
    with pytest.raises(StorageError):
        store.answer("b", second.id, number=2, line="again", is_error=False)
    assert list(store.answers("b", is_error=False)) == ["one"]
    assert list(store.answers("b", is_error=True)) == ["two"]
    found = store.find("b", tenant="t")
    assert found is not None
    assert (found.num_total, found.num_completed, found.num_failed) == (2, 1, 1)


def begin(store: StoredBatches, lease: ServerLease, wanted: StoredBatch) -> None:
    store.create(wanted)
    assert store.claim(lease.id) is not None
    assert store.advance(wanted.id, lease.id, since="validating", to="in_progress", num_total=1)


def test_a_server_that_stops_leaves_its_batches_at_once(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    first, second = (lease_of(database, clock) for _ in range(2))
    store.create(batch("b", file))
    assert store.claim(first.id) is not None
    store.release(first.id)
    assert store.claim(second.id, busy_tenants=["t"]) is None
    assert store.claim(second.id) is not None


def test_a_batch_that_is_put_off_is_left_alone_until_then_by_every_server(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    first, second = (lease_of(database, clock) for _ in range(2))
    store.create(batch("b", file))
    store.claim(first.id)
    until_ms = int(clock.now * 1000) + 7000
    assert not store.put_off("b", first.id, until_ms=until_ms)
    store.advance("b", first.id, since="validating", to="in_progress", num_total=1)
    assert not store.put_off("b", second.id, until_ms=until_ms)
    assert store.put_off("b", first.id, until_ms=until_ms)
    assert not store.answer("b", first.id, number=0, line="late", is_error=False)
    clock.now += 6.9
    again = StoredBatches(database, clock=clock)
    assert again.claim(first.id) is again.claim(second.id) is None
    clock.now += 0.1
    taken = again.claim(second.id)
    assert taken is not None
    assert (taken.status, taken.not_before_ms) == ("in_progress", until_ms)


def test_a_clock_that_is_set_back_keeps_nobody_waiting(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    lease = lease_of(database, clock)
    begin(store, lease, batch("b", file))
    store.put_off("b", lease.id, until_ms=int((clock.now + LONGEST_PUT_OFF_S) * 1000))
    assert store.claim(lease.id) is None
    clock.now -= 1
    assert store.claim(lease.id) is not None


def test_whether_any_is_due_is_what_claim_would_say(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    lease = lease_of(database, clock)
    store.create(batch("b", file))
    for running, busy in (([], []), (["b"], []), ([], ["t"])):
        assert store.is_any_due(lease.id, running=running, busy_tenants=busy) == (not running and not busy)
    store.claim(lease.id)
    other = lease_of(database, clock)
    assert not store.is_any_due(other.id, running=[], busy_tenants=[])


def test_a_batch_that_waited_comes_after_those_that_were_made_meanwhile(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    lease = lease_of(database, clock)
    begin(store, lease, batch("a", file))
    store.put_off("a", lease.id, until_ms=900)
    store.create(replace(batch("b", file), created_at_ms=899))
    store.create(replace(batch("c", file), created_at_ms=901))
    claimed = [store.claim(lease.id, running=running) for running in ([], ["b"], ["b", "a"])]
    assert [each and each.id for each in claimed] == ["b", "a", "c"]


def test_a_batch_that_is_put_off_can_be_stopped_at_once(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    lease = lease_of(database, clock)
    begin(store, lease, batch("b", file))
    store.put_off("b", lease.id, until_ms=10**12)
    store.cancel("b", tenant="t")
    taken = store.claim(lease.id)
    assert taken is not None
    assert taken.status == "cancelling"


def test_what_answers_took_is_counted_with_them(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    lease = lease_of(database, clock)
    one = BatchTokens(input_tokens=5, cached_tokens=2, output_tokens=3, reasoning_tokens=1)
    for name in ("new", "older"):
        store.create(batch(name, file, tenant="t"))
        store.claim(lease.id, running=["new"] if name == "older" else [])
        store.advance(name, lease.id, since="validating", to="in_progress", num_total=2)
    uncounted = update(batches).where(batches.c.id == "older").values(input_tokens=None)
    database.write(lambda connection: connection.execute(uncounted))
    for name in ("new", "older"):
        for number in range(2):
            store.answer(name, lease.id, number=number, line="x", is_error=False, tokens=one)
        with pytest.raises(StorageError):
            store.answer(name, lease.id, number=1, line="again", is_error=False, tokens=one)
    new, older = (store.find(name, tenant="t") for name in ("new", "older"))
    assert new is not None
    assert new.tokens == BatchTokens(input_tokens=10, cached_tokens=4, output_tokens=6, reasoning_tokens=2)
    assert older is not None
    assert older.tokens is None


def test_files_and_the_last_status_come_together(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile, tmp_path: Path
) -> None:
    lease, files = lease_of(database, clock), StoredFiles(database, tmp_path / "files", quota_bytes=100)
    store.create(batch("b", file))
    store.claim(lease.id)
    draft = files.begin()
    draft.seal()
    output = files.describe(draft, tenant="t", purpose="batch_output", filename="o")
    ending = {"to": "completed", "output": output, "failures": None, "errors": None}
    assert not store.finish("b", lease.id, since="finalizing", **ending)  # type: ignore[arg-type]
    assert files.find(output.id, tenant="t") is None
    assert store.finish("b", lease.id, since="validating", **ending)  # type: ignore[arg-type]
    assert files.find(output.id, tenant="t") == output
    found = store.find("b", tenant="t")
    assert found is not None
    assert (found.status, found.output_file_id, found.owner) == ("completed", output.id, None)
    assert found.times == {"completed": 1_000_000}
    assert store.sweep(retention_s=900) == 1
    assert store.find("b", tenant="t") is None


def test_sec_09_a_tenant_has_so_many_unfinished_batches(store: StoredBatches, file: StoredFile) -> None:
    for number in range(MOST_UNFINISHED):
        assert store.create(batch(f"b{number}", file))
    with pytest.raises(RequestError, match="unfinished"):
        store.create(batch("more", file))
    assert not store.create(batch("other", file, tenant="u"))


def test_sec_09_answers_are_read_a_few_megabytes_at_a_time(
    store: StoredBatches, database: Database, clock: Clock, file: StoredFile
) -> None:
    lease = lease_of(database, clock)
    store.create(batch("b", file))
    store.claim(lease.id)
    store.advance("b", lease.id, since="validating", to="in_progress", num_total=12)
    sizes = [3 << 20, 10, 5 << 20, *[2 << 20] * 8, 1]
    for number, size in enumerate(sizes):
        assert store.answer("b", lease.id, number=number, line=chr(97 + number) * size, is_error=False)
    assert store.answered_chars("b") == sum(sizes)
    tracemalloc.start()
    try:
        read = [(line[0], len(line)) for line in store.answers("b", is_error=False)]
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == [(chr(97 + number), size) for number, size in enumerate(sizes)]
    assert most_bytes < 17 << 20  # of 24 MB: a page, one line more, and a copy of it
