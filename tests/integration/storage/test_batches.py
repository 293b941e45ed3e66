"""Batches in PostgreSQL: several servers take each once, and what has to wait waits for all of them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qwenstack.storage import BatchTokens, ServerLease, StoredBatch, StoredBatches, StoredFiles, open_database

NUM_BATCHES = 12


def test_every_batch_is_taken_once_and_what_is_put_off_waits_for_all(postgres: Any, tmp_path: Path) -> None:
    databases = [open_database(postgres.url) for _ in range(4)]
    files = StoredFiles(databases[0], tmp_path / "files", quota_bytes=100)
    file = files.keep(files.begin(), tenant="t", purpose="batch", filename="f")
    stores = [StoredBatches(database) for database in databases]
    leases = [ServerLease(database, lease_s=60) for database in databases]
    for number in range(NUM_BATCHES):
        made = {"id": f"b{number}", "tenant": "t", "caller": "{}", "endpoint": "/v1/x", "input_file_id": file.id}
        stores[0].create(StoredBatch(**made, metadata="{}", created_at_ms=number, expires_at_ms=10**14))  # type: ignore[arg-type]
    until_ms = int(time.time() * 1000) + 600_000
    tokens = BatchTokens(input_tokens=2**33, output_tokens=1)

    def run(index: int) -> list[str]:
        store, lease = stores[index], leases[index]
        lease.renew()
        taken: list[str] = []
        while (batch := store.claim(lease.id, running=taken)) is not None:
            taken.append(batch.id)
            store.advance(batch.id, lease.id, since="validating", to="in_progress", num_total=2)
            assert store.answer(batch.id, lease.id, number=0, line="x", is_error=False, tokens=tokens)
            assert store.put_off(batch.id, lease.id, until_ms=until_ms)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [name for names in pool.map(run, range(4)) for name in names]
    assert sorted(taken) == sorted(f"b{number}" for number in range(NUM_BATCHES))
    found = stores[1].find("b3", tenant="t")
    assert found is not None
    assert (found.owner, found.not_before_ms, found.tokens) == (None, until_ms, tokens)
    later = StoredBatches(databases[2], clock=lambda: until_ms / 1000)
    again = later.claim(leases[2].id)
    assert again is not None
    assert again.id == "b0"
    for database in databases:
        database.close()
