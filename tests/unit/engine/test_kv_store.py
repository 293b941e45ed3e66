"""Blocks on the disk: what comes back is exactly what was put, or nothing."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import qwenstack
from qwenstack.engine import kv_store
from qwenstack.engine.cache_key import child_key, pack_tokens, root_key, tenant_salt
from qwenstack.engine.kv_file import KVBlock, decode_block, encode_block, file_bytes
from qwenstack.engine.kv_store import KVStore, KVStoreConfig, choose_removals, disk_bytes, steady_clock
from qwenstack.engine.private_folder import FileEntry, PrivateFolder
from qwenstack.engine.tenant_secret import load_tenant_secret

ROOT = bytes(32)
PAYLOAD_BYTES = 64
UNIT = 4096
"""Disk space of one small block."""
DAY = 86_400.0


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Setup:
    """Makes stores on one folder, and closes them."""

    path: Path
    clock: Clock = field(default_factory=Clock)
    stores: list[KVStore] = field(default_factory=list)

    def store(self, *, payload_bytes: int = PAYLOAD_BYTES, **options: float) -> KVStore:
        config = KVStoreConfig(folder=self.path, **{"min_free_bytes": 0} | options)
        store = KVStore(config, payload_bytes=payload_bytes, clock=self.clock)
        assert store.flush(10)
        self.stores.append(store)
        return store


@pytest.fixture
def setup(tmp_path: Path) -> Generator[Setup]:
    made = Setup(tmp_path / "prefix")
    yield made
    for store in made.stores:
        store.close()


def payload_of(number: int, num_bytes: int = PAYLOAD_BYTES) -> bytes:
    return hashlib.shake_128(str(number).encode()).digest(num_bytes)


def tokens_of(number: int) -> list[int]:
    return [number, number + 1, number + 2, number + 3]


def key_of(number: int) -> bytes:
    return child_key(ROOT, tokens_of(number))


def put(store: KVStore, *numbers: int, num_bytes: int = PAYLOAD_BYTES) -> None:
    for number in numbers:
        assert store.put(key_of(number), ROOT, tokens_of(number), lambda n=number: payload_of(n, num_bytes))
    assert store.flush(10)


def get(store: KVStore, number: int) -> bytes | None:
    found = store.get(key_of(number), tokens_of(number))
    return None if found is None else bytes(found)


def path_of(setup: Setup, number: int) -> Path:
    return setup.path / f"{key_of(number).hex()}.kv"


def test_a_block_comes_back_also_after_a_restart(setup: Setup) -> None:
    store = setup.store()
    assert get(store, 1) is None
    put(store, 1)
    assert store.contains(key_of(1))
    assert not store.contains(key_of(2))
    assert get(store, 1) == payload_of(1)
    store.close()
    again = setup.store()
    assert get(again, 1) == payload_of(1)
    assert again.stats().num_blocks == 1
    assert again.stats().num_bytes == UNIT
    stats = store.stats()
    assert (stats.hits, stats.misses, stats.written) == (1, 1, 1)


def test_what_waits_is_written_when_the_store_closes(setup: Setup) -> None:
    store = setup.store()
    for number in range(50):
        assert store.put(key_of(number), ROOT, tokens_of(number), lambda n=number: payload_of(n))
    store.close()
    assert [get(setup.store(), number) for number in range(50)] == [payload_of(number) for number in range(50)]
    assert not store.put(key_of(99), ROOT, tokens_of(99), lambda: payload_of(99))
    assert get(store, 1) is None


def test_arrays_of_any_type_are_kept_byte_for_byte_and_cannot_be_written_to(setup: Setup) -> None:
    values = np.arange(32, dtype=np.float16).reshape(2, 2, 8)
    store = setup.store()
    assert store.put(key_of(1), ROOT, tokens_of(1), lambda: values)
    assert store.flush(10)
    found = store.get(key_of(1), tokens_of(1))
    assert found is not None
    assert found.readonly
    np.testing.assert_array_equal(np.frombuffer(found, np.float16).reshape(2, 2, 8), values)


def test_a_payload_is_asked_for_only_where_it_is_wanted(setup: Setup) -> None:
    store = setup.store()
    put(store, 1)
    assert not store.put(key_of(1), ROOT, tokens_of(1), lambda: pytest.fail("it is on the disk already"))


def test_a_full_queue_refuses_blocks_and_says_how_many(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    store = setup.store(max_queue_bytes=3 * PAYLOAD_BYTES)
    gate, write = threading.Event(), PrivateFolder.write

    def slow_write(*arguments: object, **options: object) -> None:
        assert gate.wait(10)
        write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(PrivateFolder, "write", slow_write)
    taken = [store.put(key_of(n), ROOT, tokens_of(n), lambda n=n: payload_of(n)) for n in range(5)]
    assert taken == [True, True, True, False, False]
    assert not store.put(key_of(2), ROOT, tokens_of(2), lambda: pytest.fail("it waits already"))
    gate.set()
    assert store.flush(10)
    assert store.stats().refused == 2
    assert [get(store, number) is not None for number in range(5)] == taken


def test_a_block_under_another_name_is_our_own_mistake(setup: Setup) -> None:
    with pytest.raises(AssertionError):
        setup.store().put(key_of(2), ROOT, tokens_of(1), lambda: payload_of(1))


# Damage


def encoded(number: int = 1) -> bytes:
    block = KVBlock(
        key=key_of(number),
        parent=ROOT,
        packed_tokens=pack_tokens(tokens_of(number)),
        written_at=1e9,
        payload=memoryview(payload_of(number)),
    )
    return b"".join(encode_block(block))


def decoded(raw: bytes, number: int = 1) -> KVBlock | None:
    packed = pack_tokens(tokens_of(number))
    return decode_block(raw, key=key_of(number), packed_tokens=packed, payload_bytes=PAYLOAD_BYTES)


def test_sec_32_every_single_flipped_bit_and_every_cut_is_noticed() -> None:
    raw = encoded()
    assert len(raw) == file_bytes(4, PAYLOAD_BYTES)
    block = decoded(raw)
    assert block is not None
    assert block.payload == payload_of(1)
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decoded(bytes(flipped)) is None
    assert not any(decoded(raw[:length]) for length in range(len(raw)))
    assert decoded(raw + b"\0") is None


def test_sec_32_a_well_formed_file_with_the_digest_of_something_else_is_noticed() -> None:
    """Somebody who can compute digests still cannot put other tokens, or another parent, under a name."""
    for name, value in (("parent", b"p" * 32), ("packed_tokens", pack_tokens([9, 9, 9, 9])), ("key", key_of(2))):
        parts = {"key": key_of(1), "parent": ROOT, "packed_tokens": pack_tokens(tokens_of(1)), name: value}
        block = KVBlock(**parts, written_at=1e9, payload=memoryview(payload_of(1)))
        assert decoded(b"".join(encode_block(block))) is None


def test_sec_32_200_flipped_bits_and_50_cuts_of_a_real_block_are_each_noticed_and_dropped(setup: Setup) -> None:
    num_bytes = 196_608
    store = setup.store(payload_bytes=num_bytes)
    put(store, 1, num_bytes=num_bytes)
    path, chance = path_of(setup, 1), random.Random(20261125)
    raw = path.read_bytes()
    for number in range(250):
        damaged = bytearray(raw)
        if number < 200:
            damaged[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(raw)) :]
        path.write_bytes(damaged)
        path.chmod(0o600)
        assert store.get(key_of(1), tokens_of(1)) is None
        assert not path.exists()
        assert store.stats().damaged == number + 1
    put(store, 1, num_bytes=num_bytes)
    assert get(store, 1) == payload_of(1, num_bytes)


def test_sec_32_a_block_in_the_place_of_another_is_dropped(setup: Setup) -> None:
    store = setup.store()
    put(store, 1, 2)
    path_of(setup, 1).rename(path_of(setup, 2))
    assert get(store, 2) is None
    assert not path_of(setup, 2).exists()


def test_sec_32_a_link_in_the_place_of_a_block_is_dropped_and_not_followed(setup: Setup, tmp_path: Path) -> None:
    store = setup.store()
    put(store, 1)
    elsewhere = tmp_path / "elsewhere"
    path_of(setup, 1).rename(elsewhere)
    path_of(setup, 1).symlink_to(elsewhere)
    assert get(store, 1) is None
    assert not path_of(setup, 1).is_symlink()
    assert elsewhere.is_file()
    assert store.stats().damaged == 1


def test_sec_32_a_file_of_another_user_is_dropped(setup: Setup) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    store = setup.store()
    put(store, 1)
    os.chown(path_of(setup, 1), 54321, -1)
    assert get(store, 1) is None
    assert not path_of(setup, 1).exists()


def test_sec_16_another_tenant_never_hits(setup: Setup) -> None:
    store, secret = setup.store(), load_tenant_secret(PrivateFolder(setup.path))
    names = {
        tenant: root_key(
            b"model",
            kv_dtype="float16",
            precision="a8",
            settings=b"",
            arithmetic=b"",
            adapter_digest=None,
            tenant_salt=tenant_salt(secret, tenant),
        )
        for tenant in ("", "alice", "bob")
    }
    key = child_key(names["alice"], [1, 2, 3, 4])
    assert store.put(key, names["alice"], [1, 2, 3, 4], lambda: payload_of(1))
    assert store.flush(10)
    found = {tenant: store.get(child_key(root, [1, 2, 3, 4]), [1, 2, 3, 4]) for tenant, root in names.items()}
    assert [tenant for tenant, block in found.items() if block is not None] == ["alice"]


# Size and age


def entries(*ages: float, num_bytes: int = UNIT) -> list[FileEntry]:
    return [FileEntry(str(number), num_bytes, 1000 - age) for number, age in enumerate(ages)]


def test_nothing_goes_while_there_is_room() -> None:
    removals = choose_removals(entries(1, 2, 3), now=1000, max_age_s=10, budget_bytes=4 * UNIT, room_bytes=UNIT)
    assert (removals.expired, removals.evicted) == ([], [])


def test_the_longest_unused_go_first_and_a_sixteenth_with_them() -> None:
    removals = choose_removals(
        entries(*range(32, 0, -1)), now=1000, max_age_s=100, budget_bytes=32 * UNIT, room_bytes=UNIT
    )
    assert [entry.name for entry in removals.evicted] == ["0", "1", "2"]


def test_what_is_too_old_goes_and_makes_room_for_the_rest() -> None:
    removals = choose_removals(entries(1, 11, 2), now=1000, max_age_s=10, budget_bytes=3 * UNIT, room_bytes=UNIT)
    assert [entry.name for entry in removals.expired] == ["1"]
    assert removals.evicted == []


def test_a_disk_that_fills_up_takes_the_cache_down_with_it() -> None:
    removals = choose_removals(entries(1, 2), now=1000, max_age_s=10, budget_bytes=-UNIT, room_bytes=0)
    assert len(removals.evicted) == 2


def test_a_clock_set_back_removes_nothing() -> None:
    removals = choose_removals(entries(-5000, 1), now=1000, max_age_s=10, budget_bytes=2 * UNIT, room_bytes=0)
    assert (removals.expired, removals.evicted) == ([], [])


def test_small_files_count_as_what_the_disk_gives_them() -> None:
    assert [disk_bytes(size) for size in (1, 4096, 4097)] == [4096, 4096, 8192]


def test_the_store_stays_within_its_limit_and_keeps_what_is_used(setup: Setup) -> None:
    store = setup.store(limit_bytes=16 * UNIT)
    put(store, 0)
    for number in range(1, 60):
        setup.clock.now += 1000
        put(store, number)
        assert get(store, 0) == payload_of(0)
        assert sum(disk_bytes(path.stat().st_size) for path in setup.path.iterdir()) <= 16 * UNIT
    assert store.stats().evicted >= 44
    assert get(store, 59) == payload_of(59)
    assert get(store, 1) is None


def test_a_block_lives_as_long_as_it_is_used_but_not_for_ever(setup: Setup) -> None:
    store = setup.store(max_age_s=7 * DAY, max_lifetime_s=30 * DAY)
    put(store, 1, 2)
    for _ in range(5):
        setup.clock.now += 6 * DAY
        assert get(store, 1) == payload_of(1)
    assert not store.contains(key_of(2))
    assert get(store, 2) is None
    setup.clock.now += 1 * DAY
    assert get(store, 1) is None
    assert store.stats().expired == 2
    assert list(setup.path.iterdir()) == []


def test_old_blocks_leave_the_disk_unasked(setup: Setup) -> None:
    put(setup.store(), 1, 2)
    setup.clock.now += 8 * DAY
    assert setup.store().stats().expired == 2
    assert list(setup.path.iterdir()) == []


def test_a_clock_that_was_ahead_neither_expires_blocks_nor_keeps_them_for_ever(setup: Setup) -> None:
    setup.clock.now += 400 * DAY
    put(setup.store(), 1)
    setup.clock.now -= 400 * DAY
    store = setup.store()
    assert get(store, 1) == payload_of(1)
    setup.clock.now += 8 * DAY
    assert get(store, 1) is None


def test_times_in_the_future_are_set_right_unasked(setup: Setup) -> None:
    setup.clock.now += 400 * DAY
    put(setup.store(), 1)
    setup.clock.now -= 400 * DAY
    setup.store()
    assert path_of(setup, 1).stat().st_mtime == setup.clock.now
    setup.clock.now += 8 * DAY
    assert setup.store().stats().expired == 1


def test_two_stores_on_one_folder_exceed_the_limit_by_little(setup: Setup) -> None:
    stores = [setup.store(limit_bytes=32 * UNIT), setup.store(limit_bytes=32 * UNIT)]
    for number in range(120):
        put(stores[number % 2], number)
        assert len(list(setup.path.iterdir())) <= 32 + 4


def test_the_clock_goes_on_evenly_when_somebody_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = steady_clock()
    before = time.time()
    assert abs(clock() - before) < 5
    monkeypatch.setattr(time, "time", lambda: before + 400 * DAY)
    assert abs(clock() - before) < 60


# Disks that fail


def test_a_full_disk_switches_the_store_off_for_a_while_with_one_warning(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kv_store, "_PAUSE_S", 0.05)
    store = setup.store()
    put(store, 1)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(os, "writev", full)
        for _ in range(3):
            wait_until(lambda: store.put(key_of(2), ROOT, tokens_of(2), lambda: payload_of(2)))
            assert store.flush(10)
            assert "No space left on device" in (store.stats().off_because or "No space left on device")
    (warning,) = caplog.records
    assert warning.message == (
        f"The prefix cache keeps nothing on the disk for now: writing to {str(setup.path)!r} failed: "
        "No space left on device. Answers are not affected."
    )
    wait_until(lambda: store.put(key_of(2), ROOT, tokens_of(2), lambda: payload_of(2)))
    assert store.flush(10)
    assert (get(store, 1), get(store, 2)) == (payload_of(1), payload_of(2))
    assert store.stats().off_because is None
    assert len(list(setup.path.iterdir())) == 2


def test_a_disk_that_cannot_be_read_switches_the_store_off(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    store = setup.store()
    put(store, 1)

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "read", broken)
    assert get(store, 1) is None
    monkeypatch.undo()
    assert get(store, 1) is None, "it is left alone for a while"
    assert "Input/output error" in (store.stats().off_because or "")
    assert path_of(setup, 1).exists()


def test_the_last_gigabyte_of_the_disk_is_left_to_others(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    store = setup.store(min_free_bytes=1 << 60)
    put(store, 1)
    assert store.stats().written == 0
    assert f"of which {1 << 60} stay free" in caplog.text
    assert list(setup.path.iterdir()) == []


def test_a_limit_below_one_block_is_named(setup: Setup) -> None:
    store = setup.store(limit_bytes=UNIT - 1)
    put(store, 1)
    assert store.stats().off_because == "a block takes 4096 bytes, more than `prefix_cache_disk_bytes`, 4095"


def test_a_folder_that_was_removed_is_made_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_store, "_PAUSE_S", 0.01)
    store = setup.store()
    put(store, 1)
    shutil.rmtree(setup.path)
    put(store, 2)
    assert get(store, 2) is None
    wait_until(lambda: store.put(key_of(3), ROOT, tokens_of(3), lambda: payload_of(3)))
    assert store.flush(10)
    assert get(store, 3) == payload_of(3)


def test_sec_32_a_folder_that_others_can_fill_is_not_used_at_all(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    put(setup.store(), 1)
    setup.path.chmod(0o777)
    store = setup.store()
    assert get(store, 1) is None
    assert not store.contains(key_of(1))
    assert not store.put(key_of(2), ROOT, tokens_of(2), lambda: payload_of(2))
    assert "written to by others (mode 0777)" in (store.stats().off_because or "")
    assert len(caplog.records) == 1


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Everything at once


class TwoStoresOnOneFolder(RuleBasedStateMachine):
    """Against a dictionary: puts, gets, damage, restarts, moves of the clock and evictions in any order."""

    LIMIT = 16 * UNIT
    numbers = st.integers(0, 40)
    sides = st.integers(0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.setup = Setup(Path(self.folder.name) / "prefix")
        self.stores = [self.open(), self.open()]
        self.used: dict[int, float] = {}
        self.written: dict[int, float] = {}
        self.damaged: set[int] = set()

    def open(self) -> KVStore:
        return self.setup.store(limit_bytes=self.LIMIT, max_age_s=7 * DAY, max_lifetime_s=30 * DAY)

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.folder.cleanup()

    def on_disk(self) -> dict[int, float]:
        numbers = {path_of(self.setup, number).name: number for number in range(41)}
        return {numbers[path.name]: path.stat().st_mtime for path in self.setup.path.iterdir()}

    def is_expired(self, number: int) -> bool:
        now = self.setup.clock.now
        return now - self.used[number] > 7 * DAY or now - self.written[number] > 30 * DAY

    def after_a_sweep(self, *, new: int | None = None) -> None:
        """Take over what a sweep removed, after checking that it was right to."""
        now, found = self.setup.clock.now, self.on_disk()
        gone = self.used.keys() - found.keys()
        evicted = {number for number in gone if now - self.used[number] <= 7 * DAY}
        assert found.keys() <= self.used.keys()
        if evicted:
            assert len(found) + len(evicted) > self.LIMIT // UNIT
            assert len(found) >= self.LIMIT // UNIT - 1, "no more goes than a sixteenth"
            kept = [self.used[number] for number in found if number != new]
            assert max(self.used[number] for number in evicted) <= min(kept, default=now)
        for number in gone:
            del self.used[number], self.written[number]
            self.damaged.discard(number)
        for number, used in found.items():
            if used != self.used[number]:
                assert self.used[number] > now + 300, "only times in the future are set right"
                assert used == now
                self.used[number] = now

    @rule(numbers=st.lists(numbers, min_size=1, max_size=12), side=sides)
    def put(self, numbers: list[int], side: int) -> None:
        for number in numbers:
            self.put_one(number, side)

    def put_one(self, number: int, side: int) -> None:
        store, now = self.stores[side], self.setup.clock.now
        is_there = number in self.used and now - self.used[number] <= 7 * DAY
        taken = store.put(key_of(number), ROOT, tokens_of(number), lambda: payload_of(number))
        assert taken == (not is_there)
        assert store.flush(10)
        if taken:
            if number in self.used and self.on_disk().get(number) != now:
                raise AssertionError("a block that was put is on the disk")
            self.used[number] = self.written[number] = now
            self.damaged.discard(number)
            self.after_a_sweep(new=number)
            assert number in self.used

    @rule(number=numbers, side=sides)
    def get(self, number: int, side: int) -> None:
        now = self.setup.clock.now
        found = get(self.stores[side], number)
        if number in self.used and number not in self.damaged and not self.is_expired(number):
            assert found == payload_of(number)
            if abs(now - self.used[number]) > 300:
                self.used[number] = now
            return
        assert found is None
        self.used.pop(number, None)
        self.written.pop(number, None)
        self.damaged.discard(number)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.used)))
        path = path_of(self.setup, number)
        raw = bytearray(path.read_bytes())
        if number not in self.damaged:  # a second flip could mend the first
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(raw)
        os.utime(path, (self.used[number], self.used[number]))
        self.damaged.add(number)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def somebody_removes_a_file(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.used)))
        path_of(self.setup, number).unlink()
        del self.used[number], self.written[number]
        self.damaged.discard(number)

    @rule(seconds=st.sampled_from([1.0, 250.0, 400.0, 3600.0, DAY, 3 * DAY, -3600.0, -2 * DAY]))
    def the_clock_moves(self, seconds: float) -> None:
        self.setup.clock.now += seconds

    @rule(side=sides)
    def restart(self, side: int) -> None:
        self.stores[side].close()
        (self.setup.path / ".of-a-dead-writer.tmp").write_bytes(b"half a block")
        self.stores[side] = self.open()
        self.after_a_sweep()

    @invariant()
    def the_limit_holds_and_the_folder_is_what_the_dictionary_says(self) -> None:
        found = self.on_disk()
        assert found == self.used
        assert len(found) * UNIT <= self.LIMIT * 18 // 16, "a sixteenth for each store at most"


TestTwoStoresOnOneFolder = TwoStoresOnOneFolder.TestCase
TestTwoStoresOnOneFolder.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

LARGE_BYTES = 2_000_000
"""So that most of the time is spent in the middle of a write."""
_WRITER = """
import sys, time
from pathlib import Path
from qwenstack.engine.kv_store import KVStore, KVStoreConfig
sys.path.insert(0, sys.argv[2])
from test_kv_store import LARGE_BYTES, ROOT, key_of, payload_of, tokens_of
config = KVStoreConfig(folder=Path(sys.argv[1]), min_free_bytes=0, max_queue_bytes=4 * LARGE_BYTES)
store = KVStore(config, payload_bytes=LARGE_BYTES)
for number in range(int(sys.argv[3]), int(sys.argv[3]) + 100):
    payload = payload_of(number, LARGE_BYTES)
    while not store.put(key_of(number), ROOT, tokens_of(number), lambda: payload):
        time.sleep(0.0005)
    if number == int(sys.argv[3]):
        store.flush(10)
        print("writing", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_nothing_that_is_served_wrong(setup: Setup) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    setup.clock.now = time.time()
    environ = {**os.environ, "PYTHONPATH": str(Path(qwenstack.__file__).parent.parent)}
    num_whole = 0
    for first in range(0, 500, 100):
        command = [sys.executable, "-c", _WRITER, str(setup.path), str(Path(__file__).parent), str(first)]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as writer:
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"writing\n"
                time.sleep(chance.uniform(0, 0.1))
            finally:
                writer.send_signal(signal.SIGKILL)
        store = setup.store(payload_bytes=LARGE_BYTES)
        assert not [path for path in setup.path.iterdir() if path.suffix != ".kv"]
        for number in range(first, first + 100):
            if path_of(setup, number).exists():
                assert get(store, number) == payload_of(number, LARGE_BYTES)
                num_whole += 1
        assert store.stats().damaged == 0
    assert num_whole >= 5


def test_a_store_may_be_closed_on_its_own_thread(tmp_path: Path) -> None:
    """As the collector of garbage does, when it finds an engine that nobody uses any more."""
    closed = threading.Event()
    stores: list[KVStore] = []

    def clock() -> float:
        if stores and threading.current_thread().name == "kv-store" and not closed.is_set():
            closed.set()
            stores[0].close()
        return 1000.0

    store = KVStore(KVStoreConfig(folder=tmp_path / "kv", min_free_bytes=0), payload_bytes=PAYLOAD_BYTES, clock=clock)
    assert store.flush(10)
    stores.append(store)
    put(store, 1)
    with store._changed:
        store._next_sweep = 0.0
        store._changed.notify_all()
    assert closed.wait(10)
    store._writer.join(10)
    assert not store._writer.is_alive()
