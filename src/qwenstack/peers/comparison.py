"""The run itself: engines take turns, repetition by repetition, each on the same fresh prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qwenstack.peers.driver_process import DriverProcess, Loaded, PeerError, Timed
from qwenstack.peers.workload import Workload, turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked of every engine."""

    model_file: Path
    workloads: Sequence[Workload]
    repetitions: int
    num_threads: int
    vocab_size: int
    """Prompts are drawn from the ids below."""
    keep_loaded: bool
    """Whether all engines stay in memory; else each is started for its turn alone."""


@dataclass(slots=True, kw_only=True)
class Findings:
    """What came of it."""

    loaded: dict[str, Loaded] = field(default_factory=dict[str, Loaded])
    timed: dict[tuple[str, str], list[Timed]] = field(default_factory=dict[tuple[str, str], list[Timed]])
    """By engine and workload, in the order of repetitions."""
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """Why an engine has no figures, by engine."""
    bandwidths: list[float] = field(default_factory=list[float])
    """Bytes a second that the memory gave between the repetitions."""


def compare(
    commands: Mapping[str, Sequence[str]],
    plan: Plan,
    *,
    source: random.Random,
    measure_bandwidth: Callable[[], float],
    say: Callable[[str], None],
) -> Findings:
    """Measure each engine that can load the file.

    An engine that fails is left out from then on, with all its figures: half of a series has no pairs.

    Args:
        commands: how to start the driver of each engine.
        plan: what to ask.
        source: of the prompts.
        measure_bandwidth: bytes a second that the memory gives now.
        say: tells people how far it is.
    """
    findings = Findings()
    with ExitStack() as stack:
        seats: dict[str, _Seat] = {}
        for name, command in commands.items():
            say(f"{name}: loading {plan.model_file.name}")
            seat = _Seat(name, command, plan)
            stack.callback(seat.close)
            try:
                with seat.driver() as driver:
                    assert driver is not None
                findings.loaded[name] = seat.loaded
                seats[name] = seat
            except PeerError as error:
                findings.failures[name] = str(error)
                say(str(error))
        for repetition in range(plan.repetitions):
            findings.bandwidths.append(measure_bandwidth())
            for workload in plan.workloads:
                prompts = workload.fresh_prompts(source, plan.vocab_size)
                for name in turns(list(seats), repetition) if seats else ():
                    say(f"{repetition + 1}/{plan.repetitions} {workload.name}: {name}")
                    try:
                        with seats[name].driver() as driver:
                            timed = _run(driver, workload, prompts)
                    except PeerError as error:
                        say(str(error))
                        findings.failures[name] = str(error)
                        seats.pop(name).close()
                    else:
                        findings.timed.setdefault((name, workload.name), []).append(timed)
    for name, workload in list(findings.timed):
        if name in findings.failures:
            del findings.timed[name, workload]
    return findings


class _Seat:
    """One engine: its process where it stays, or the way to start it again."""

    def __init__(self, name: str, command: Sequence[str], plan: Plan) -> None:
        self._name, self._command, self._plan = name, command, plan
        self._kept: DriverProcess | None = None
        self.loaded = Loaded(engine=name, version="")

    @contextmanager
    def driver(self) -> Generator[DriverProcess]:
        """Give the engine, loaded and warm."""
        driver = self._kept or self._start()
        if self._plan.keep_loaded:
            self._kept = driver
            yield driver
        else:
            with driver:
                yield driver

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _start(self) -> DriverProcess:
        driver = DriverProcess(self._name, self._command)
        try:
            request = {"op": "load", "path": str(self._plan.model_file), "num_threads": self._plan.num_threads}
            self.loaded = driver.ask(request, Loaded)
            source = random.Random(self._name)  # noqa: S311 - prompts, not secrets; and none of the measured ones
            for workload in self._plan.workloads:
                short = workload.shortened()
                _run(driver, short, short.fresh_prompts(source, self._plan.vocab_size))
        except BaseException:
            driver.close()
            raise
        return driver


def _run(driver: DriverProcess, workload: Workload, prompts: list[list[int]]) -> Timed:
    return driver.ask({"op": "run", "prompts": prompts, "max_tokens": workload.max_tokens}, Timed)
