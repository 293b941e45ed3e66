"""The table in docs/reliability.md."""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from reliability.rows import ROWS
from reliability.verdict import Bar, Verdict

_LINE = re.compile(r"^\| ([A-Z]\d+) \|.*$", re.MULTILINE)


def with_table(page: str, verdicts: Mapping[str, Verdict], *, machine: str) -> str:
    """Return the page with the lines of these rows as they were measured now; those of others stay."""

    def write(found: re.Match[str]) -> str:
        verdict = verdicts.get(found[1])
        return found[0] if verdict is None else write_line(verdict, machine=machine)

    return _LINE.sub(write, page)


def write_line(verdict: Verdict, *, machine: str) -> str:
    """Write one row."""
    bars = "; ".join(_write_bar(bar) for bar in verdict.findings.bars)
    result = "holds" if verdict.passed else "**does not hold**"
    when = f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, `{verdict.scale}`, {machine}"
    return f"| {verdict.row} | {ROWS[verdict.row].claim} | {bars} | {result} ({when}) |"


def describe_machine() -> str:
    """Say what was measured on, and how busy it was."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = model[1].strip() if model else "unknown processor"
    return f"{os.cpu_count()} cores of {name}, load {os.getloadavg()[0]:.1f}"


def _write_bar(bar: Bar) -> str:
    limit = f"≤ {bar.at_most:g}" if bar.at_most < math.inf else f"≥ {bar.at_least:g}"
    return f"{bar.name} {bar.value:.4g} ({limit})"
