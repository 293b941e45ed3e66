"""Results as the Markdown of the documentation: the newest run of each machine and file, never typed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qwenstack.peers.records import OURS, AbsenceRecord, PerplexityRecord, Record, SpeedRecord


def render(records: Sequence[Record]) -> str:
    """Return tables of speed for each machine and file, then those of perplexity and what follows from both."""
    return "\n".join([*_speed_sections(records), *_perplexity_sections(records)]).rstrip() + "\n"


def fastest_as_good(
    engine: str, perplexities: Mapping[tuple[str, str], float], speeds: Mapping[tuple[str, str], float], limit: float
) -> str | None:
    """Return the file with which an engine decodes fastest among those that cost it no more perplexity than `limit`.

    Args:
        engine: whose files.
        perplexities: by engine and file.
        speeds: tokens a second, by engine and file.
        limit: ours.
    """
    good = [
        file
        for (name, file), perplexity in perplexities.items()
        if name == engine and perplexity <= limit and (engine, file) in speeds
    ]
    return max(good, key=lambda file: speeds[engine, file], default=None)


def _newest(records: Sequence[Record]) -> list[Record]:
    """Leave out what was measured again later: the same machine, file, engine and kind of measurement."""
    newest: dict[tuple[str, ...], Record] = {}
    for record in records:
        what = record.workload if isinstance(record, SpeedRecord) else ""
        newest[type(record).__name__, record.circumstances.cpu, record.file, record.engine, what] = record
    return list(newest.values())


def _speed_sections(records: Sequence[Record]) -> Iterator[str]:
    places: dict[tuple[str, str], list[SpeedRecord]] = {}
    for record in records:
        if isinstance(record, SpeedRecord):
            places.setdefault((record.circumstances.cpu, record.file), []).append(record)
    for (_, file), all_runs in places.items():
        run = all_runs[-1].circumstances.run  # one table is one run: figures of different hours are not compared
        speeds = [record for record in all_runs if record.circumstances.run == run]
        where = speeds[0].circumstances
        engines = list(dict.fromkeys(record.engine for record in speeds))
        by_cell = {(record.workload, record.engine): record for record in speeds}
        yield f"### {file}, {where.cpu}\n"
        yield "| tokens/s (ours ÷ theirs) | " + " | ".join(engines) + " |"
        yield "|---" * (len(engines) + 1) + "|"
        for workload in dict.fromkeys(record.workload for record in speeds):
            cells = [_speed_cell(by_cell.get((workload, engine))) for engine in engines]
            yield f"| {workload} | " + " | ".join(cells) + " |"
        yield ""
        yield from _notes(speeds, [record for record in records if record.circumstances.run == run], file)


def _speed_cell(record: SpeedRecord | None) -> str:
    if record is None:
        return "–"
    ratio = "" if record.ratio is None else f" ({record.ratio:.2f}×)"
    return f"{_number(record.tokens_per_second)}{ratio}"


def _number(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"


def _notes(speeds: Sequence[SpeedRecord], run: Sequence[Record], file: str) -> Iterator[str]:
    where = speeds[0].circumstances
    repetitions = max(len(record.tokens_per_second_runs) for record in speeds)
    shares = [
        f"{record.engine} {record.bandwidth_share:.0%}"
        for record in speeds
        if record.workload == "decode-1" and record.bandwidth_share is not None
    ]
    yield (
        f"Median of {repetitions}, {where.num_threads} threads of {where.num_cores} cores "
        f"({', '.join(where.cpu_flags)}), {where.run}, commit {_short(where.commit)}: `{where.command}`. "
        f"Memory reads {speeds[0].memory_bandwidth_gb_per_second:.1f} GB/s"
        + (f"; decode-1 reaches of it: {', '.join(shares)}." if shares else ".")
    )
    yield "Versions: " + "; ".join(dict.fromkeys(_version(record) for record in speeds)) + "."
    for record in run:
        if isinstance(record, AbsenceRecord) and record.file in ("", file):
            yield f"No figures of {record.engine}: {record.reason}"
    yield ""


def _short(commit: str) -> str:
    return commit[:12] + ("+ changes" if commit.endswith("+") else "")


def _version(record: SpeedRecord) -> str:
    return f"{record.engine} {record.version}" + (f" ({record.remark})" if record.remark else "")


def _perplexity_sections(records: Sequence[Record]) -> Iterator[str]:
    newest = _newest(records)
    scored = [record for record in newest if isinstance(record, PerplexityRecord)]
    for cpu in dict.fromkeys(record.circumstances.cpu for record in scored):
        here = [record for record in scored if record.circumstances.cpu == cpu]
        first = here[0]
        engines = list(dict.fromkeys(record.engine for record in here))
        perplexities = {(record.engine, record.file): record.perplexity for record in here}
        yield f"### Perplexity, {cpu}\n"
        yield "| file | " + " | ".join(engines) + " |"
        yield "|---" * (len(engines) + 1) + "|"
        for file in dict.fromkeys(record.file for record in here):
            cells = [
                f"{perplexities[engine, file]:.3f}" if (engine, file) in perplexities else "–" for engine in engines
            ]
            yield f"| {file} | " + " | ".join(cells) + " |"
        yield ""
        yield (
            f"{first.num_tokens:,} tokens of {first.text} in windows of {first.window}, {first.circumstances.run}: "
            f"`{first.circumstances.command}`."
        )
        speeds = {
            (record.engine, record.file): record.tokens_per_second
            for record in newest
            if isinstance(record, SpeedRecord) and record.workload == "decode-1" and record.circumstances.cpu == cpu
        }
        yield from _best_files(engines, perplexities, speeds)
        yield ""


def _best_files(
    engines: Sequence[str], perplexities: Mapping[tuple[str, str], float], speeds: Mapping[tuple[str, str], float]
) -> Iterator[str]:
    """Say with which file each other engine is fastest at our quality."""
    for (engine, own_file), limit in perplexities.items():
        if engine != OURS or (OURS, own_file) not in speeds:
            continue
        for peer in engines:
            best = None if peer == OURS else fastest_as_good(peer, perplexities, speeds, limit)
            if best is not None:
                ratio = speeds[OURS, own_file] / speeds[peer, best]
                yield (
                    f"\nAt the perplexity of ours on {own_file} or better, {peer} decodes fastest with {best}: "
                    f"{_number(speeds[peer, best])} tokens/s, ours ÷ theirs {ratio:.2f}×."
                )
