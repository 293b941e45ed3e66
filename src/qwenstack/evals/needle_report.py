"""The answers of a needle test on disk, one JSON object a line, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qwenstack.core.errors import ConfigError
from qwenstack.evals.haystack import Language
from qwenstack.evals.needle import Cell, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the answers of a report have in common; answers of another setup are not theirs."""

    model: str
    language: Language
    hay: str
    """`made` for sentences made here, else the name of the text."""
    seed: int
    yarn_factor: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleReport:
    """All answers of one setup."""

    setup: Setup
    cells: Sequence[Cell]

    @property
    def num_found(self) -> int:
        """Cells whose answer names the number."""
        return sum(cell.found for cell in self.cells)

    def cell_at(self, place: Place) -> Cell | None:
        """Return the answer of a cell; None where it was not asked."""
        return next((cell for cell in self.cells if cell.place == place), None)

    def as_json(self) -> dict[str, object]:
        """Return the report as JSON's types."""
        return {
            **dataclasses.asdict(self.setup),
            "num_found": self.num_found,
            "num_cells": len(self.cells),
            "cells": [_flat(cell) for cell in self.cells],
        }


def read_report(path: Path, setup: Setup) -> NeedleReport:
    """Read the answers of a setup; a missing file has none, and a last line that was cut off does not count.

    Raises:
        ConfigError: the file holds something else.
    """
    cells: dict[Place, Cell] = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            wanted = dataclasses.asdict(setup)
            if {name: row[name] for name in wanted} == wanted:
                cell = _cell(row)
                cells[cell.place] = cell
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"Line {number} of {str(path)!r} is no answer of a needle test. Give another file, or delete this one."
            ) from error
    return NeedleReport(setup=setup, cells=tuple(cells.values()))


def append_cell(path: Path, setup: Setup, cell: Cell) -> None:
    """Write one answer behind those that are there; a line that was cut off is taken away first."""
    row = json.dumps({**dataclasses.asdict(setup), **_flat(cell)}, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = "".join(f"{line}\n" for line in _whole_lines(path))
    with path.open("a", encoding="utf-8") as file:
        file.truncate(len(whole.encode()))
        file.write(row + "\n")


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _flat(cell: Cell) -> dict[str, object]:
    row = dataclasses.asdict(cell)
    return {**cast("dict[str, object]", row.pop("place")), **row}


def _cell(row: dict[str, Any]) -> Cell:
    return Cell(
        place=Place(length=row["length"], depth_percent=row["depth_percent"]),
        code=row["code"],
        answer=row["answer"],
        found=row["found"],
        num_prompt_tokens=row["num_prompt_tokens"],
        seconds=row["seconds"],
    )
