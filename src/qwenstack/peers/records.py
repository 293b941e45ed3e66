"""What is kept of a measurement: a JSON line for each engine, file and workload, with all that explains the figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeAlias

import msgspec

from qwenstack.core.errors import ConfigError
from qwenstack.peers.driver_process import Timed
from qwenstack.peers.workload import Workload

OURS = "qwenstack"


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What all records of a run share."""

    run: str
    """Names the run: when it began."""
    command: str
    commit: str
    """Of our sources; `+` at its end: with changes."""
    cpu: str
    cpu_flags: tuple[str, ...]
    num_cores: int
    memory_bytes: int | None
    platform: str
    num_threads: int


class SpeedRecord(msgspec.Struct, frozen=True, kw_only=True, tag="speed", tag_field="kind"):
    """How fast one engine did one workload on one file."""

    circumstances: Circumstances
    file: str
    file_bytes: int
    workload: str
    max_tokens: int
    engine: str
    version: str
    remark: str
    tokens_per_second: float
    """Median."""
    tokens_per_second_runs: list[float]
    ratio: float | None
    """Median of ours divided by this engine's, pair by pair; None: there is none of ours."""
    ratio_runs: list[float]
    memory_bandwidth_gb_per_second: float
    """Read by the same threads in the same run, median."""
    bytes_per_step: int | None
    """Weights, keys and values that a decoding step reads; None: a prefill, or unknown."""
    bandwidth_share: float | None
    """Of the memory bandwidth, that decoding reached."""
    cached_tokens: int | None
    """Prompt tokens that a cache answered for, by the engine's own counter."""
    drafted_tokens: int | None
    same_first_tokens: float | None
    """Share of answers that begin as ours do."""


class AbsenceRecord(msgspec.Struct, frozen=True, kw_only=True, tag="absence", tag_field="kind"):
    """Why there is no figure."""

    circumstances: Circumstances
    engine: str
    file: str
    """Empty: any."""
    reason: str


class PerplexityRecord(msgspec.Struct, frozen=True, kw_only=True, tag="perplexity", tag_field="kind"):
    """How well one engine foresees a text with one file."""

    circumstances: Circumstances
    file: str
    file_bytes: int
    engine: str
    version: str
    text: str
    window: int
    num_tokens: int
    """Scored: all but the first of each window."""
    perplexity: float


Record: TypeAlias = SpeedRecord | AbsenceRecord | PerplexityRecord


def tokens_per_second(workload: Workload, timed: Timed) -> float:
    """Return the speed of the part that the workload times."""
    if workload.timed == "prefill":
        return workload.num_streams * workload.prompt_tokens / timed.prefill_s
    return timed.decode_tokens / timed.decode_s


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours divided by theirs, repetition by repetition: what disturbed one repetition disturbed both."""
    return [own / other for own, other in zip(ours, theirs, strict=True)]


def bandwidth_share(workload: Workload, timed: Sequence[Timed], bytes_per_step: int, bandwidth: float) -> float | None:
    """Return which part of the memory bandwidth decoding reached, by its median step; None: nothing was decoded."""
    num_steps = workload.max_tokens - 1
    if workload.timed == "prefill" or num_steps < 1:
        return None
    return bytes_per_step * num_steps / median(one.decode_s for one in timed) / bandwidth


def total(counts: Iterable[int | None]) -> int | None:
    """Return a sum, or None where one is unknown."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def same_first_tokens(ours: Sequence[Timed], theirs: Sequence[Timed]) -> float | None:
    """Return the share of answers whose first tokens agree; None: an engine does not show them."""
    pairs = [
        pair
        for own, other in zip(ours, theirs, strict=True)
        for pair in zip(own.first_token_ids, other.first_token_ids, strict=False)
    ]
    return sum(own == other for own, other in pairs) / len(pairs) if pairs else None


def as_line(record: Record) -> str:
    """Return a record as a line of JSON."""
    return msgspec.json.encode(record).decode() + "\n"


def append_record(path: Path, record: Record) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(as_line(record))


def read_records(path: Path) -> list[Record]:
    """Return all lines of a file of results.

    Raises:
        ConfigError: it is not there or damaged.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"There are no results in {str(path)!r}; 'qwenstack bench peers' makes some.") from error
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(msgspec.json.decode(line, type=Record))
        except msgspec.MsgspecError as error:
            raise ConfigError(f"Line {number} of {str(path)!r} is no result: {error}.") from error
    return records
