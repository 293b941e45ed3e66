"""Where the time of `qwenstack bench engine --profile` goes: the phases of a step, and the kernels within two of them.

Prompts and answers apart, since reading prompts waits for arithmetic and writing answers for memory.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from qwenstack.cli.output import print_table

if TYPE_CHECKING:
    from qwenstack.engine.hooks import StepPhase
    from qwenstack.kernels.profiled import KernelTally, ProfiledKernels
    from qwenstack.kernels.protocol import Kernels

Section = Literal["prefill", "decode"]
_MODEL_PHASES: tuple[StepPhase, ...] = ("forward", "logits")


class KernelLine(TypedDict):
    """One operation in one place of the model."""

    operation: str
    num_calls: int
    seconds: float
    bytes_read: int
    gb_per_second: float


class SectionReport(TypedDict):
    """Where the time of one section went."""

    num_steps: int
    seconds: float
    """Of all steps."""
    phase_seconds: Mapping[str, float]
    """What each phase of a step took; together `seconds`."""
    model_seconds: float
    """Of the phases `forward` and `logits`, in which all kernels run."""
    kernels: list[KernelLine]
    """The slowest first; together with what lies between them `model_seconds`."""
    between_kernels_seconds: float
    """Python around the kernels."""


@dataclass(slots=True)
class _SectionTimes:
    num_steps: int = 0
    phase_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict[str, float](float))
    kernels: dict[str, KernelTally] = field(default_factory=dict[str, "KernelTally"])


class Profiler:
    """A clock for the engine's steps and, through `instrument`, for its kernels; counts only inside a section."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin outside of any section."""
        self._clock = clock
        self._kernels: ProfiledKernels | None = None
        self._sections: dict[Section, _SectionTimes] = {}
        self._section: _SectionTimes | None = None
        self._phase: StepPhase | None = None
        self._since = 0.0

    def instrument(self, kernels: Kernels) -> Kernels:
        """Return the kernels that a model shall be loaded with."""
        from qwenstack.kernels.profiled import ProfiledKernels

        self._kernels = ProfiledKernels(kernels, clock=self._clock)
        return self._kernels.as_kernels()

    def begin(self, section: Section | None) -> None:
        """End the section before and begin this one, or none."""
        if self._kernels is not None:
            tallies = self._kernels.take_tallies()
            if self._section is not None:
                _add(self._section.kernels, tallies)
        self._section = None if section is None else self._sections.setdefault(section, _SectionTimes())

    def enter(self, phase: StepPhase) -> None:
        """See `StepClock.enter`."""
        now = self._clock()
        if self._section is not None:
            if self._phase is None:
                self._section.num_steps += 1
            else:
                self._section.phase_s[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def leave(self) -> None:
        """See `StepClock.leave`."""
        if self._section is not None and self._phase is not None:
            self._section.phase_s[self._phase] += self._clock() - self._since
        self._phase = None

    def report(self) -> dict[Section, SectionReport]:
        """Return what was measured in each section."""
        return {name: _report(times) for name, times in self._sections.items()}


def _add(totals: dict[str, KernelTally], tallies: Mapping[str, KernelTally]) -> None:
    for label, tally in tallies.items():
        total = totals.setdefault(label, tally)
        if total is not tally:
            total.num_calls += tally.num_calls
            total.seconds += tally.seconds
            total.bytes_read += tally.bytes_read


def _report(times: _SectionTimes) -> SectionReport:
    lines = [
        KernelLine(
            operation=label,
            num_calls=tally.num_calls,
            seconds=round(tally.seconds, 6),
            bytes_read=tally.bytes_read,
            gb_per_second=round(tally.bytes_read / tally.seconds / 1e9, 2) if tally.seconds else 0.0,
        )
        for label, tally in times.kernels.items()
    ]
    model_seconds = sum(times.phase_s.get(phase, 0.0) for phase in _MODEL_PHASES)
    in_kernels = sum(tally.seconds for tally in times.kernels.values())
    return SectionReport(
        num_steps=times.num_steps,
        seconds=round(sum(times.phase_s.values()), 6),
        phase_seconds={phase: round(value, 6) for phase, value in times.phase_s.items()},
        model_seconds=round(model_seconds, 6),
        kernels=sorted(lines, key=lambda line: -line["seconds"]),
        between_kernels_seconds=round(model_seconds - in_kernels, 6),
    )


def print_profile(report: Mapping[str, object]) -> None:
    """Print the parts of a report that `--profile` added, as tables whose shares add up to the whole."""
    for section, times in cast("dict[Section, SectionReport]", report["profile"]).items():
        whole, num_steps = times["seconds"], times["num_steps"]
        print_table(
            (f"{section.upper()}: PHASES OF A STEP", "MS/STEP", "SHARE"),
            [
                (phase, *_time(seconds, whole, num_steps))
                for phase, seconds in (*times["phase_seconds"].items(), ("all", whole))
            ],
        )
        whole = times["model_seconds"]
        print_table(
            (f"{section.upper()}: KERNELS OF FORWARD AND LOGITS", "CALLS", "MS/STEP", "SHARE", "MB/STEP", "GB/S"),
            [
                *(_kernel_row(line, whole, num_steps) for line in times["kernels"]),
                *(
                    (name, "", *_time(seconds, whole, num_steps), "", "")
                    for name, seconds in (("between kernels", times["between_kernels_seconds"]), ("all", whole))
                ),
            ],
        )
    print_table(("", ""), [("memory reads", f"{report['memory_bandwidth_gb_per_second']} GB/s")])


def _kernel_row(line: KernelLine, whole: float, num_steps: int) -> tuple[str, ...]:
    rates = ("", "")
    if line["bytes_read"]:
        rates = f"{line['bytes_read'] / max(num_steps, 1) / 1e6:.1f}", f"{line['gb_per_second']:.1f}"
    return line["operation"], str(line["num_calls"]), *_time(line["seconds"], whole, num_steps), *rates


def _time(seconds: float, whole: float, num_steps: int) -> tuple[str, str]:
    """Return the milliseconds of a step, and the share of the whole."""
    return f"{seconds / max(num_steps, 1) * 1e3:.3f}", f"{seconds / whole if whole else 0.0:.1%}"
