"""How fast this machine reads its memory: what a model's weights per second cannot exceed."""

from __future__ import annotations

import threading
import time

import numpy as np

_BUFFER_BYTES = 256 << 20
"""Beyond the last-level cache of one processor."""
_ROUNDS = 4
"""The best one counts: the others were disturbed, and the first also maps the pages."""


def measure_read_bandwidth(num_threads: int) -> float:
    """Return bytes a second that `num_threads` threads read together, each its own part of a large buffer.

    The largest of many bytes is numpy's read with the least arithmetic: 32 of them in one instruction of AVX2.
    """
    buffer = np.ones(_BUFFER_BYTES, np.uint8)
    parts = np.array_split(buffer, num_threads)
    best_s = min(_read_s(parts) for _ in range(_ROUNDS))
    return buffer.nbytes / best_s


def _read_s(parts: list[np.ndarray]) -> float:
    threads = [threading.Thread(target=part.max) for part in parts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start
