"""What a row found out, as a value: figures, each beside its bar."""

from __future__ import annotations

import gc
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Scale = Literal["ci", "long"]
SCALES: tuple[Scale, ...] = ("ci", "long")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One figure, and what it has to be."""

    name: str
    value: float
    at_most: float = math.inf
    at_least: float = -math.inf
    is_speed: bool = False
    """Whether a busy machine can miss it: such bars are reported everywhere and judged in full runs only."""

    @property
    def holds(self) -> bool:
        """Whether the figure is good enough."""
        return self.at_least <= self.value <= self.at_most

    def __str__(self) -> str:
        limit = f"at most {self.at_most:g}" if self.at_most < math.inf else f"at least {self.at_least:g}"
        return f"{self.name}: {self.value:g}, {limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one run of a row measured."""

    bars: Sequence[Bar]
    figures: Mapping[str, float | str]
    """What was done, and what else is worth knowing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said of one run of one row."""

    row: str
    scale: Scale
    findings: Findings

    @property
    def passed(self) -> bool:
        """Whether every bar holds."""
        return all(bar.holds for bar in self.findings.bars)

    @property
    def wrongs(self) -> list[str]:
        """Bars that fail on any machine: something was lost, wrong or left behind."""
        return [str(bar) for bar in self.findings.bars if not bar.holds and not bar.is_speed]

    @property
    def slow(self) -> list[str]:
        """Bars that fail, perhaps because others used the machine."""
        return [str(bar) for bar in self.findings.bars if not bar.holds and bar.is_speed]

    def as_json(self) -> dict[str, object]:
        """Return what the JSON line has."""
        return {
            "row": self.row,
            "scale": self.scale,
            "pass": self.passed,
            "missed": [*self.wrongs, *self.slow],
            "bars": {bar.name: round(bar.value, 4) for bar in self.findings.bars},
            "figures": dict(self.findings.figures),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One claim, and how it is tried."""

    id: str
    claim: str
    sizes: Mapping[Scale, Any]
    run: Callable[[Any], Awaitable[Findings]]

    async def judge(self, scale: Scale) -> Verdict:
        """Try it; what the clients leave behind is collected afterwards, so that no pause of theirs counts."""
        gc.disable()
        try:
            return Verdict(row=self.id, scale=scale, findings=await self.run(self.sizes[scale]))
        finally:
            gc.enable()


class RowSkipped(Exception):  # noqa: N818 - not an error
    """A program that the row needs is not on this machine; the message names it."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that so many percent of them do not exceed (nearest rank); 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)] if ordered else 0.0
