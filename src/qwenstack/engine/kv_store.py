"""Blocks of keys and values on the disk: what the prefix cache keeps beyond its memory and beyond a restart.

A cache of content that names itself: a file's name is the hash of what its values depend on (`cache_key`), and a file
that does not prove on reading to be what its name says (`kv_file`) is removed and was never there. So nothing is
flushed to the disk, processes that share the folder need no locks, and a crash at any moment costs blocks, never a
wrong answer. The folder itself is the index: a file's time of modification is when its block was used last.

Reading happens where it is asked for; writing and removing on one thread behind a bounded queue. A disk that is full
or fails switches the store off for a while; serving goes on.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from typing_extensions import Buffer

from qwenstack.core.errors import ConfigError
from qwenstack.engine.cache_key import key_of_packed, pack_tokens
from qwenstack.engine.kv_file import KVBlock, decode_block, encode_block, file_bytes
from qwenstack.engine.private_folder import FileEntry, ForeignFileError, PrivateFolder

logger = logging.getLogger(__name__)

_BLOCK_NAME = re.compile(r"[0-9a-f]{64}\.kv")
_TOUCH_INTERVAL_S = 300
"""Last uses are recorded no finer: one system call for a block in five minutes."""
_SWEEP_INTERVAL_S = 3600
"""How soon expired blocks leave the disk of a server with nothing to do."""
_PAUSE_S = 60
"""How long a disk that failed is left alone."""
_SWEEP_SHARE = 16
"""The folder is listed again after each sixteenth of the limit that was written, so that P processes exceed it by P
sixteenths at most; and a sixteenth is freed at once, so that a full cache is not listed for every block."""
_DISK_UNIT_BYTES = 4096
"""What file systems hand out at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVStoreConfig:
    """Where blocks are kept, how many and how long."""

    folder: Path
    limit_bytes: int = 4 << 30
    """Disk space; 350,000 tokens of the default model."""
    max_age_s: float = 7 * 86_400
    """A block that was not used for this long is removed."""
    max_lifetime_s: float = 30 * 86_400
    """A block that was written longer ago is not used any more."""
    min_free_bytes: int = 1 << 30
    """What stays free on the disk for everybody else."""
    max_queue_bytes: int = 32 << 20
    """Memory for blocks that wait for the disk: 2,700 tokens of the default model, of which a block of 16 takes the
    writer 0.7 ms of a processor (`benches/kv_store.py`, 2026-11-25)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVStoreStats:
    """Counters since the start, and what is on the disk."""

    hits: int = 0
    misses: int = 0
    written: int = 0
    refused: int = 0
    """Blocks not taken because the queue was full or the store off."""
    damaged: int = 0
    """Files dropped because they were not what their name said."""
    expired: int = 0
    evicted: int = 0
    num_blocks: int = 0
    """As last listed, and written since."""
    num_bytes: int = 0
    off_because: str | None = None
    """Why nothing is read or written at the moment."""


@dataclass(frozen=True, slots=True)
class Removals:
    """Which files a sweep removes."""

    expired: list[FileEntry]
    evicted: list[FileEntry]


def default_folder() -> Path:
    """Return the folder where this user's blocks are kept unless a setting names another."""
    import platformdirs

    return platformdirs.user_cache_path("qwenstack", appauthor=False) / "prefix"


def list_blocks(folder: PrivateFolder) -> list[FileEntry]:
    """Return the blocks of a folder, also those of other models and tenants."""
    return [entry for entry in folder.entries() if _BLOCK_NAME.fullmatch(entry.name)]


def disk_bytes(num_bytes: int) -> int:
    """Return the disk space that a file takes."""
    return -(-num_bytes // _DISK_UNIT_BYTES) * _DISK_UNIT_BYTES


def choose_removals(
    entries: Iterable[FileEntry], *, now: float, max_age_s: float, budget_bytes: int, room_bytes: int
) -> Removals:
    """Decide what must go: what is too old, then the longest unused until `room_bytes` more fit into the budget.

    Where something must be evicted, a sixteenth of the budget is freed with it. Times in the future count as
    the newest: a clock that was set back removes nothing.
    """
    by_use = sorted(entries, key=lambda entry: entry.modified_at)
    expired = [entry for entry in by_use if now - entry.modified_at > max_age_s]
    kept = by_use[len(expired) :]
    held = sum(disk_bytes(entry.num_bytes) for entry in kept)
    evicted: list[FileEntry] = []
    if held + room_bytes > budget_bytes:
        goal = budget_bytes - budget_bytes // _SWEEP_SHARE - room_bytes
        for entry in kept:
            if held <= goal:
                break
            held -= disk_bytes(entry.num_bytes)
            evicted.append(entry)
    return Removals(expired, evicted)


def steady_clock() -> Callable[[], float]:
    """Return a clock of seconds since 1970 that nobody sets: read once, then carried on by the time since boot.

    A clock that jumps while we run must not make all blocks look old. It counts on while a laptop sleeps.
    """
    ticks = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
    offset = time.time() - ticks()
    return lambda: offset + ticks()


class KVStore:
    """Blocks by their names. `get`, `contains` and `put` are for one thread; the others for any."""

    def __init__(self, config: KVStoreConfig, *, payload_bytes: int, clock: Callable[[], float] | None = None) -> None:
        """Open the folder, and start to list it on another thread; blocks can be read at once.

        A folder that cannot be used leaves the store off, with one sentence in the log.

        Args:
            config: where, how many, how long.
            payload_bytes: bytes of one block's keys and values; files of other sizes are none of this engine.
            clock: seconds since 1970; None: a `steady_clock`.
        """
        self._config = config
        self._payload_bytes = payload_bytes
        self._clock = clock or steady_clock()
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._queue: deque[KVBlock] = deque()
        self._queued_keys: set[bytes] = set()
        self._stats = KVStoreStats()
        self._is_busy = True
        self._is_closed = False
        self._has_warned = False
        self._resume_at = 0.0
        self._next_sweep = 0.0
        # The writer's alone:
        self._unlisted_bytes = 0
        # Swapped whole; a thread that still has the old one may use it to the end.
        self._folder: PrivateFolder | None = None
        self._open_folder()
        self._writer = threading.Thread(target=self._run, name="kv-store", daemon=True)
        self._writer.start()

    def contains(self, key: bytes) -> bool:
        """Whether a block seems to be there; only `get` tells."""
        folder = self._folder
        try:
            modified_at = folder.modified_at(_file_name(key)) if folder else None
        except OSError:
            return False
        return modified_at is not None and self._clock() - modified_at <= self._config.max_age_s

    def get(self, key: bytes, token_ids: Sequence[int]) -> memoryview | None:
        """Return a block's keys and values, read only, or None; a file that is not exactly this block is removed.

        Copy them and let go of the view before the next call: its memory is then used again, which halves the time.

        Args:
            key: `cache_key.child_key` of the block.
            token_ids: its tokens, which are compared too.
        """
        folder = self._folder
        if folder is None:
            self._count(misses=1)
            return None
        try:
            return self._read(folder, key, token_ids)
        except FileNotFoundError:
            self._count(misses=1)
            return None
        except OSError as error:
            self._count(misses=1)
            return self._pause(f"reading from {str(folder.path)!r} failed: {error.strerror}")

    def _read(self, folder: PrivateFolder, key: bytes, token_ids: Sequence[int]) -> memoryview | None:
        name, packed = _file_name(key), pack_tokens(token_ids)
        try:
            raw, modified_at = folder.read(name, file_bytes(len(token_ids), self._payload_bytes))
        except ForeignFileError:
            return self._drop(folder, name, "damaged")
        block = decode_block(raw, key=key, packed_tokens=packed, payload_bytes=self._payload_bytes)
        if block is None:
            return self._drop(folder, name, "damaged")
        now = self._clock()
        if now - modified_at > self._config.max_age_s or now - block.written_at > self._config.max_lifetime_s:
            return self._drop(folder, name, "expired")
        if abs(now - modified_at) > _TOUCH_INTERVAL_S:
            folder.touch(name, now)
        self._count(hits=1)
        return block.payload

    def put(self, key: bytes, parent: bytes, token_ids: Sequence[int], payload: Callable[[], Buffer]) -> bool:
        """Hand a block to the writer; True if it was taken.

        Args:
            key: `cache_key.child_key(parent, token_ids)`.
            parent: name of the block before it, or the root.
            token_ids: its tokens.
            payload: called at once, and only if the block is wanted; returns bytes that nobody changes afterwards.
        """
        packed = pack_tokens(token_ids)
        assert key == key_of_packed(parent, packed), "a block has the name of its own content"
        if self.contains(key):
            return False
        with self._changed:
            if key in self._queued_keys:
                return False
            num_queued = len(self._queue) + self._is_busy
            is_full = (num_queued + 1) * self._payload_bytes > self._config.max_queue_bytes
            if self._folder is None or self._is_closed or is_full:
                self._stats = replace(self._stats, refused=self._stats.refused + 1)
                return False
        view = memoryview(payload()).cast("B").toreadonly()
        assert view.nbytes == self._payload_bytes
        block = KVBlock(key=key, parent=parent, packed_tokens=packed, written_at=self._clock(), payload=view)
        with self._changed:
            self._queue.append(block)
            self._queued_keys.add(key)
            self._changed.notify_all()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until the writer has nothing left to do; False if that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._is_busy, timeout_s)

    def close(self, timeout_s: float = 5) -> None:
        """Take no more blocks, write those that wait, and end; what is not written by then is lost."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._writer is not threading.current_thread():  # where garbage is collected is nobody's choice
            self._writer.join(timeout_s)
        self._folder = None

    def stats(self) -> KVStoreStats:
        """Return the counters."""
        with self._changed:
            return self._stats

    # The writer

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            if self._folder is None and now >= self._resume_at:
                self._open_folder()
            if self._folder is not None and now >= self._next_sweep:
                self._guarded(lambda folder: self._sweep(folder, room_bytes=0))
            block = self._next_block()
            if block is not None:
                self._guarded(partial(self._write, block))
            elif self._is_closed:
                return

    def _next_block(self) -> KVBlock | None:
        """Wait for a block, or until it is time for something else."""
        with self._changed:
            self._is_busy = False
            self._queued_keys = {block.key for block in self._queue}
            self._changed.notify_all()
            while not self._queue and not self._is_closed:
                wake_at = self._next_sweep if self._folder else self._resume_at  # a pause changes it meanwhile
                left_s = wake_at - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            self._is_busy = True
            return self._queue.popleft() if self._queue else None

    def _guarded(self, work: Callable[[PrivateFolder], None]) -> None:
        folder = self._folder
        if folder is None:
            return
        try:
            work(folder)
        except OSError as error:
            self._pause(f"writing to {str(folder.path)!r} failed: {error.strerror}")

    def _write(self, block: KVBlock, folder: PrivateFolder) -> None:
        needed = disk_bytes(file_bytes(len(block.packed_tokens) // 4, block.payload.nbytes))
        if not self._make_room(folder, needed):
            self._pause(self._why_full(folder, needed))
            return
        folder.write(_file_name(block.key), encode_block(block), modified_at=block.written_at)
        self._unlisted_bytes += needed
        with self._changed:
            self._has_warned = False
        self._count(written=1, num_blocks=1, num_bytes=needed)

    def _make_room(self, folder: PrivateFolder, needed: int) -> bool:
        is_listed = self._unlisted_bytes + needed <= self._config.limit_bytes // _SWEEP_SHARE
        if not is_listed or self._stats.num_bytes + needed > self._budget_bytes(folder):
            self._sweep(folder, room_bytes=needed)
        return self._stats.num_bytes + needed <= self._budget_bytes(folder)

    def _budget_bytes(self, folder: PrivateFolder) -> int:
        """Return what the cache may take in all: less than its limit where the disk fills up."""
        spare = folder.free_bytes() - self._config.min_free_bytes
        return min(self._config.limit_bytes, self._stats.num_bytes + spare)

    def _why_full(self, folder: PrivateFolder, needed: int) -> str:
        if needed > self._config.limit_bytes:
            return f"a block takes {needed} bytes, more than `prefix_cache_disk_bytes`, {self._config.limit_bytes}"
        least = self._config.min_free_bytes
        return f"{folder.free_bytes()} bytes of the disk are free, of which {least} stay free; a block takes {needed}"

    def _sweep(self, folder: PrivateFolder, *, room_bytes: int) -> None:
        """List the folder, which other processes fill too, and remove what is too old or too much."""
        folder.remove_leftovers()
        now = self._clock()
        entries = list_blocks(folder)
        self._set_held(entries)
        removals = choose_removals(
            entries,
            now=now,
            max_age_s=self._config.max_age_s,
            budget_bytes=self._budget_bytes(folder),
            room_bytes=room_bytes,
        )
        gone = {entry.name for entry in (*removals.expired, *removals.evicted)}
        for name in gone:
            folder.remove(name)
        kept = [entry for entry in entries if entry.name not in gone]
        for entry in kept:
            if entry.modified_at > now + _TOUCH_INTERVAL_S:  # the clock was set back: count its age from here
                folder.touch(entry.name, now)
        self._set_held(kept)
        self._count(expired=len(removals.expired), evicted=len(removals.evicted))
        self._unlisted_bytes = 0
        self._next_sweep = time.monotonic() + _SWEEP_INTERVAL_S

    # Both threads

    def _open_folder(self) -> None:
        try:
            folder = PrivateFolder(self._config.folder)
        except ConfigError as error:
            self._pause(str(error))
        except OSError as error:
            self._pause(f"{str(self._config.folder)!r} cannot be used: {error.strerror}")
        else:
            with self._changed:
                self._folder = None if self._is_closed else folder
                self._next_sweep = 0.0
                self._stats = replace(self._stats, off_because=None)

    def _pause(self, reason: str) -> None:
        """Switch the store off for a while, and say so once until a block was written again."""
        with self._changed:
            self._folder = None
            self._resume_at = time.monotonic() + _PAUSE_S
            self._stats = replace(self._stats, off_because=reason, refused=self._stats.refused + len(self._queue))
            self._queue.clear()
            has_warned, self._has_warned = self._has_warned, True
            self._changed.notify_all()
        if not has_warned:
            text = reason.rstrip(".")
            logger.warning("The prefix cache keeps nothing on the disk for now: %s. Answers are not affected.", text)

    def _drop(self, folder: PrivateFolder, name: str, reason: str) -> None:
        folder.remove(name)
        self._count(misses=1, **{reason: 1})

    def _count(self, **more: int) -> None:
        with self._changed:
            counted: dict[str, int] = {name: getattr(self._stats, name) + number for name, number in more.items()}
            self._stats = replace(self._stats, **counted)

    def _set_held(self, entries: Sequence[FileEntry]) -> None:
        with self._changed:
            held = sum(disk_bytes(entry.num_bytes) for entry in entries)
            self._stats = replace(self._stats, num_blocks=len(entries), num_bytes=held)


def _file_name(key: bytes) -> str:
    return f"{key.hex()}.kv"
