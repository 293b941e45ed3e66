"""The engine process on the toy model, with requests that end it.

A prompt that begins with `POISON` ends the process while it is computed; one that begins with `LOSES_A_BLOCK` takes a
block out of the pool; with one that begins with `FAILS`, the step fails. Adapters exist by name alone.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from qwenstack.core.errors import RequestError
from qwenstack.core.protocols import AdapterInfo
from qwenstack.engine import worker
from qwenstack.engine.engine import Engine
from support.toy import ToyDecoder, toy_model

POISON = 40
LOSES_A_BLOCK = 41
FAILS = 45
STEP_S = 0.002
"""Long enough that requests meet in a step."""
FATAL_STEP_S = 0.2
"""Long enough that a reader can leave during it."""


class PoisonedDecoder(ToyDecoder):
    def forward(self, batch: Any, kv_cache: Any) -> np.ndarray:
        time.sleep(STEP_S)
        if np.any((batch.positions == 0) & (batch.token_ids == POISON)):
            time.sleep(FATAL_STEP_S)
            os.abort()
        if np.any((batch.positions == 0) & (batch.token_ids == FAILS)):
            raise ArithmeticError("This cannot be computed.")
        return super().forward(batch, kv_cache)


class FragileEngine(Engine):
    _loaded: dict[str, AdapterInfo]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loaded = {}

    def add_request(self, request_id: str, prompt_token_ids: Any, *args: Any) -> None:
        super().add_request(request_id, prompt_token_ids, *args)
        self._is_damaged = prompt_token_ids[0] == LOSES_A_BLOCK

    def check_integrity(self) -> None:
        if getattr(self, "_is_damaged", False):
            self._blocks._pool.allocate(1)
        super().check_integrity()

    def load_adapter(self, name: str, path: Path) -> None:
        if name in self._loaded:
            raise RequestError(f"There is an adapter {name!r} already.", param="adapter")
        self._loaded[name] = AdapterInfo(name=name, rank=8, num_bytes=100, num_sequences=0, digest=str(path))
        self._journal.adapter_loaded(self._counts.steps, name, path, str(path))

    def unload_adapter(self, name: str) -> None:
        if self._loaded.pop(name, None) is None:
            raise RequestError(f"There is no adapter {name!r}.", param="adapter", code="adapter_not_found")
        self._journal.adapter_unloaded(self._counts.steps, name)

    def _adapter_of(self, options: Any) -> None:
        """Adapters change nothing here."""

    def adapters(self) -> list[AdapterInfo]:
        return list(self._loaded.values())


def poisoned_model(config: Any) -> Any:
    model = toy_model(max_num_seqs=config.max_num_seqs)
    object.__setattr__(model, "decoder", PoisonedDecoder())
    return model


if __name__ == "__main__":
    worker.build_engine = lambda config, recorder: FragileEngine(poisoned_model(config), recorder=recorder)
    worker.main(int(sys.argv[1]), int(sys.argv[2]))
