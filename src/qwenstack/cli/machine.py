"""What the machine is, for `doctor` and beside every measurement."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_USEFUL_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
)
"""Instructions that kernels use or may use one day, as Linux names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The parts of a computer that decide how fast a model runs on it."""

    python: str
    platform: str
    cpu: str
    cpu_flags: tuple[str, ...]
    num_logical_cpus: int
    """That this process may use."""
    num_cores: int
    """Physical ones among them."""
    memory_bytes: int | None
    """None where the system does not tell."""


def describe_machine() -> Machine:
    """Look at the machine that this runs on."""
    cpuinfo = _CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else ""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return Machine(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        cpu_flags=useful_flags(cpuinfo),
        num_logical_cpus=len(usable),
        num_cores=len({_siblings(cpu) for cpu in usable}),
        memory_bytes=_memory_bytes(),
    )


def useful_flags(cpuinfo: str) -> tuple[str, ...]:
    """Return which of the instructions that matter here a `/proc/cpuinfo` lists."""
    listed = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return tuple(flag for flag in _USEFUL_FLAGS if flag in listed)


def _field(cpuinfo: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found and found[1].strip()


def _siblings(cpu: int) -> str:
    """Name the core that a logical CPU belongs to; each is its own where the system does not tell."""
    try:
        return Path(_SIBLINGS.format(cpu)).read_text().strip()
    except OSError:
        return str(cpu)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
