"""What memory there is to take, asked before a model is loaded; and what was taken."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedMemory:
    """What this process takes; None where the system does not tell (not Linux)."""

    proportional_bytes: int | None
    """Its own pages, and its share of those that it has in common with others (PSS)."""
    peak_bytes: int | None
    """The most that was resident at once, shared pages counted whole."""


def used_memory() -> UsedMemory:
    """Ask the system what this process takes."""
    return UsedMemory(
        proportional_bytes=_kilobytes(_SELF / "smaps_rollup", "Pss"),
        peak_bytes=_kilobytes(_SELF / "status", "VmHWM"),
    )


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


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
