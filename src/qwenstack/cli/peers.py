"""`qwenstack bench peers`: our engine beside others, in turns, on the same files and the same random prompts."""

from __future__ import annotations

import random
import secrets
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from qwenstack.cli.contest import Contest, prepare, print_records, results_file, say
from qwenstack.cli.options import AsJson, Assignments, ModelArgument
from qwenstack.core.errors import ConfigError
from qwenstack.peers.workload import DEFAULT_WORKLOADS, Workload

_DEFAULT_CONTEST = Contest()
_ENGINE_BYTES = 1 << 30
_ENGINE_FILES = 3
"""Room for an engine: some hold the weights twice while they load, or in a wider type."""


def peers(
    model: ModelArgument = None,
    /,
    *,
    contest: Contest = _DEFAULT_CONTEST,
    workloads: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=True,
            negative="",
            help="prefill-TOKENS, decode-STREAMS, or context-TOKENS, which decodes after a prompt of that length.",
        ),
    ] = DEFAULT_WORKLOADS,
    repetitions: Annotated[
        int, Parameter(validator=Number(gte=1), help="Measurements of each; the median is reported.")
    ] = 5,
    max_tokens: Annotated[int, Parameter(validator=Number(gte=2), help="Length of each answer.")] = 128,
    report: Annotated[
        bool, Parameter(negative="", show_default=False, help="Measure nothing; print the results so far as Markdown.")
    ] = False,
    as_json: AsJson = False,
    assignments: Assignments = (),
) -> None:
    """Measure this engine and others in turns, on the same files and the same random prompts."""
    from qwenstack.cli.bandwidth import measure_read_bandwidth
    from qwenstack.peers.comparison import Plan, compare
    from qwenstack.peers.model_file import ModelFile
    from qwenstack.peers.records import read_records
    from qwenstack.peers.report import render
    from qwenstack.peers.summary import summarise

    if report:
        sys.stdout.write(render(read_records(results_file(contest))))
        return
    wanted = [Workload.parse(name, max_tokens) for name in workloads]
    arena = prepare(contest, model, assignments)
    base = ModelFile.read(arena.base_file)
    if base is None:
        raise ConfigError(f"{str(arena.base_file)!r} is of a type that this engine does not read.")
    num_threads = arena.circumstances.num_threads
    for path in arena.files:
        plan = Plan(
            model_file=path,
            workloads=wanted,
            repetitions=repetitions,
            num_threads=num_threads,
            vocab_size=base.vocab_size,
            keep_loaded=_all_fit(len(arena.commands), path),
        )
        findings = compare(
            arena.commands,
            plan,
            source=random.Random(secrets.randbits(64)),  # noqa: S311 - prompts, not secrets
            measure_bandwidth=lambda: measure_read_bandwidth(num_threads),
            say=say,
        )
        for record in summarise(findings, plan, ModelFile.read(path), arena.circumstances):
            arena.add(record)
    print_records(arena, as_json=as_json)


def _all_fit(num_engines: int, path: Path) -> bool:
    """Return whether all engines may stay in memory."""
    from qwenstack.engine.memory import available_memory_bytes

    return num_engines * (_ENGINE_BYTES + _ENGINE_FILES * path.stat().st_size) < available_memory_bytes()
