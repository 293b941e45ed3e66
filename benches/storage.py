"""Measure what keys and the audit log cost: checking a key, writing entries, verifying and shortening the chain.

One JSON line, medians of the repetitions, on a new SQLite database in a temporary folder.

    python benches/storage.py --repetitions 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qwenstack.storage import ApiKeys, AuditLog, AuditRecord, open_database

CHECKS = 10_000
BATCH = 2_000
"""Entries of one transaction: a second of the requests that a server should bear."""
ACTS = 20
PAGE = 20_000
"""Entries that are removed in one transaction."""


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder: Path) -> dict[str, float]:
    """Run everything once."""
    database = open_database(f"sqlite:///{folder / 'q.db'}")
    keys, log = ApiKeys(database), AuditLog(database)
    made = keys.create(name="n", tenant="t", actor="bench")
    snapshot = keys.snapshot()
    details = {"tenant": "t", "request_id": "0" * 32, "ms": 123.4}
    record = AuditRecord(
        actor=made.key.id, action="request", subject="POST /v1/chat/completions", outcome="200", details=details
    )
    measured = {
        "check_key_us": seconds(lambda: [snapshot.find(made.text, now_ms=0) for _ in range(CHECKS)]) / CHECKS * 1e6,
        "append_one_ms": seconds(lambda: [log.append([record]) for _ in range(ACTS)]) / ACTS * 1e3,
        "append_2000_ms": seconds(lambda: log.append([record] * BATCH)) * 1e3,
        "verify_ms": seconds(log.verify) * 1e3,
    }
    database.close()  # which moves the write-ahead log into the file
    measured["bytes_an_entry"] = (folder / "q.db").stat().st_size / (ACTS + BATCH)
    database = open_database(f"sqlite:///{folder / 'q.db'}")
    log = AuditLog(database)
    log.append([record] * (PAGE - BATCH))
    measured["prune_20000_ms"] = seconds(lambda: log.prune(int(time.time() * 1000) + 1, actor="bench")) * 1e3
    database.close()
    return measured


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    runs: list[dict[str, float]] = []
    for _ in range(arguments.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder)))
    print(json.dumps({name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}))


if __name__ == "__main__":
    main()
