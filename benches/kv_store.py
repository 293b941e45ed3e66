"""How fast blocks go to the disk tier of the prefix cache and come back, for blocks of the default model.

    python benches/kv_store.py [--folder FOLDER] [--blocks 125] [--rounds 5]

125 blocks are a prompt of 2,000 tokens. Times are wall times, and processor times, which a busy machine spoils less.
Files are read back from the system's file cache, as after a restart of the
server alone; `--drop` asks the system to forget them first, as after a restart of the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qwenstack.engine.cache_key import child_key
from qwenstack.engine.kv_store import KVStore, KVStoreConfig

BLOCK_SIZE = 16
PAYLOAD_BYTES = 24 * 2 * 128 * BLOCK_SIZE * 2
"""24 layers, keys and values of 2 heads of 64, float16: Qwen2.5-Coder-0.5B."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; default: a temporary one")
    parser.add_argument("--blocks", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--drop", action="store_true", help="forget the files before they are read")
    options = parser.parse_args()
    measure_hashes()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure_store(Path(folder) / "prefix", options.blocks, options.rounds, drop=options.drop)


def measure_hashes() -> None:
    """Compare what could check a block."""
    payload = os.urandom(PAYLOAD_BYTES)
    for name in ("sha256", "blake2b", "sha512", "sha3_256"):
        seconds = best(lambda name=name: hashlib.new(name, payload).digest(), 40)
        sys.stdout.write(f"{name:<10} {PAYLOAD_BYTES / seconds / 1e9:.2f} GB/s\n")
    tokens = list(range(1000, 1000 + BLOCK_SIZE))
    seconds = best(lambda: [child_key(bytes(32), tokens) for _ in range(1000)], 10) / 1000
    sys.stdout.write(f"child_key  {seconds * 1e6:.2f} µs a block\n")


def measure_store(folder: Path, num_blocks: int, rounds: int, *, drop: bool) -> None:
    """Write, look up and read a prompt's blocks."""
    chain = make_chain(num_blocks)
    payloads = [os.urandom(PAYLOAD_BYTES) for _ in range(num_blocks)]
    config = KVStoreConfig(folder=folder, max_queue_bytes=1 << 40)
    store = KVStore(config, payload_bytes=PAYLOAD_BYTES)
    store.flush(60)
    began, began_cpu = time.perf_counter(), time.process_time()
    for (key, parent, tokens), payload in zip(chain, payloads, strict=True):
        store.put(key, parent, tokens, lambda payload=payload: payload)
    handed = time.perf_counter() - began
    store.flush(60)
    report("hand over", [handed], num_blocks)
    report("write", [time.perf_counter() - began], num_blocks)
    report("write, processor", [time.process_time() - began_cpu], num_blocks)
    store.close()
    lookups: list[float] = []
    reads: list[float] = []
    reads_cpu: list[float] = []
    for _ in range(rounds):
        if drop:
            forget(folder)
        store = KVStore(config, payload_bytes=PAYLOAD_BYTES)
        store.flush(60)
        began = time.perf_counter()
        assert all(store.contains(key) for key, _, _ in chain)
        lookups.append(time.perf_counter() - began)
        began, began_cpu = time.perf_counter(), time.process_time()
        for key, _, tokens in chain:
            assert store.get(key, tokens) is not None  # let go at once, as by an engine that copies it
        reads.append(time.perf_counter() - began)
        reads_cpu.append(time.process_time() - began_cpu)
        assert [store.get(key, tokens) for key, _, tokens in chain] == payloads
        store.close()
    report("contains", lookups, num_blocks)
    report("get", reads, num_blocks)
    report("get, processor", reads_cpu, num_blocks)


def make_chain(num_blocks: int) -> list[tuple[bytes, bytes, list[int]]]:
    """Return keys, parents and tokens of a prompt."""
    chain: list[tuple[bytes, bytes, list[int]]] = []
    parent = bytes(32)
    for index in range(num_blocks):
        tokens = list(range(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE))
        chain.append((child_key(parent, tokens), parent, tokens))
        parent = chain[-1][0]
    return chain


def forget(folder: Path) -> None:
    """Ask the system to drop the files from its memory."""
    for path in folder.glob("*.kv"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def report(what: str, seconds: list[float], num_blocks: int) -> None:
    """Print a median with its range."""
    median = statistics.median(seconds)
    sys.stdout.write(
        f"{what:<16} {median * 1e3:8.2f} ms for {num_blocks} blocks "
        f"({min(seconds) * 1e3:.2f}-{max(seconds) * 1e3:.2f}), "
        f"{median / num_blocks * 1e6:.1f} µs each, {num_blocks * PAYLOAD_BYTES / median / 1e9:.2f} GB/s\n"
    )


def best(work: Callable[[], object], rounds: int) -> float:
    """Return the shortest time of several."""
    times: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
