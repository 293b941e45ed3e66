"""Mapped files: what is asked back is given back, and read again unharmed."""

import re
from pathlib import Path

import numpy as np

from qwenstack.hub.mapped_file import map_file, release_pages

SIZE = 8 << 20


def resident_bytes(path: Path) -> int:
    """Bytes of a file that are mapped into this process and present."""
    entry = Path("/proc/self/smaps").read_text().split(str(path))[1]
    match = re.search(r"^Rss:\s+(\d+) kB", entry, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def test_released_pages_leave_memory_and_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    written = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    path.write_bytes(written.tobytes())
    data = map_file(path)
    assert np.array_equal(data, written)
    assert resident_bytes(path) == SIZE
    release_pages(data[100 : SIZE // 2].reshape(-1, 2))
    assert SIZE // 2 <= resident_bytes(path) <= SIZE // 2 + (1 << 20)
    release_pages(data)
    assert resident_bytes(path) < 1 << 20
    assert np.array_equal(data, written)


def test_bytes_that_are_no_file_are_left_alone() -> None:
    data = np.arange(1 << 16, dtype=np.uint8)
    release_pages(data[10:])
    assert np.array_equal(data, np.arange(1 << 16, dtype=np.uint8))
