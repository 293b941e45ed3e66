"""How much memory there is to take, asked before a model is loaded rather than after the machine is swapping."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """Return what this process may still take: the system's free memory, or less where a container limits it."""
    return min(_system_available_bytes(), _cgroup_available_bytes())


def _system_available_bytes() -> int:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # not Linux: all there is, the best that is known


def _cgroup_available_bytes() -> int:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text()) - _cached_file_bytes()
    except (OSError, ValueError):
        return 1 << 62
    return max(int(limit) - used, 0) if limit.isdecimal() else 1 << 62


def _cached_file_bytes() -> int:
    """Return what the container is charged for files it read, a model just fetched among them; it gives way to us."""
    for line in (_CGROUP / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0
