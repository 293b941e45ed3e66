"""How results are printed: JSON for programs, tables for people, both on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

_UNLIMITED_WIDTH = 10_000
"""A table in a pipe is for `grep`: its lines are not wrapped."""


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    sys.stdout.write(json.dumps(value) + "\n")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under headings; Chinese text takes two columns a character, as terminals show it."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(Text(heading, style="bold")) for heading in headings), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _UNLIMITED_WIDTH)
    with console.capture() as printed:
        console.print(table)
    sys.stdout.write(printed.get())
