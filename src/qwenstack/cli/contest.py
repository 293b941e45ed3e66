"""What `bench peers` and `bench perplexity` share: who is measured, on which files, and where the results go."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from qwenstack.cli.loading import fetch_model, model_cache
from qwenstack.cli.machine import describe_machine
from qwenstack.cli.output import print_table
from qwenstack.cli.settings import Settings, load_settings
from qwenstack.core.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from qwenstack.peers.records import Circumstances, Record

_DEFAULT_MODEL = "qwen2.5-coder-0.5b"
"""Not `auto`: figures of different models are no comparison."""
_STORED = "stored"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Who is measured on which files."""

    peers: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = ()
    """Other engines, of llama.cpp, ik_llama.cpp, openvino and transformers; none given: all."""
    files: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (_STORED, "Q4_0", "Q8_0")
    """`stored`, the model's own file; a type, such as Q4_0, made from it by llama.cpp, or pure-Q4_0 with the same type
    for all matrices; or a .gguf file."""
    num_threads: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    """Threads of each engine; default: one for each core."""
    environment: Path | None = None
    """Where the other engines are installed; default: .venv-peers of the source tree."""
    results: Path | None = None
    """Where records are added; default: benches/results/peers.jsonl of the source tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """A contest on this machine."""

    commands: Mapping[str, Sequence[str]]
    """How to start each engine's driver, ours first."""
    base_file: Path
    files: Sequence[Path]
    circumstances: Circumstances
    results: Path
    records: list[Record]
    """Of this run; begins with those who are absent."""

    def add(self, record: Record) -> None:
        """Keep a record, here and on the disk, where it survives whatever happens next."""
        from qwenstack.peers.records import append_record

        append_record(self.results, record)
        self.records.append(record)


def results_file(contest: Contest) -> Path:
    """Return where records are.

    Raises:
        ConfigError: there is no source tree, and no file was named.
    """
    from qwenstack.peers.environment import source_folder

    return contest.results or source_folder() / "benches" / "results" / "peers.jsonl"


def prepare(contest: Contest, model: str | None, assignments: Sequence[str]) -> Arena:
    """Find engines and files; make files that are missing.

    Raises:
        ConfigError: there is no peer or file of a name, or none of the peers is installed.
        CheckpointError: the model cannot be had.
        EngineError: a file cannot be made.
    """
    from qwenstack.engine.loading import num_cores
    from qwenstack.peers.environment import absence, find_peers, our_command, peer_command, source_folder
    from qwenstack.peers.records import OURS, AbsenceRecord

    sources = source_folder()
    environment = contest.environment or sources / ".venv-peers"
    reasons = {peer: absence(peer, environment) for peer in find_peers(contest.peers)}
    present = [peer for peer, reason in reasons.items() if reason is None]
    if not present:
        raise ConfigError(f"There is nothing to compare with. {' '.join(filter(None, reasons.values()))}")
    for reason in filter(None, reasons.values()):
        say(reason)
    settings = load_settings(assignments, {"model": model or _DEFAULT_MODEL}).value
    base_file = fetch_model(settings).path
    if base_file.suffix != ".gguf":
        raise ConfigError(f"The model {settings.model!r} is no GGUF file, which other engines read; name one that is.")
    circumstances = _circumstances(sources, contest.num_threads or num_cores())
    arena = Arena(
        commands={OURS: our_command(sources)}
        | {peer.name: peer_command(peer, sources, environment) for peer in present},
        base_file=base_file,
        files=[_file(name, base_file, settings, sources, environment) for name in contest.files],
        circumstances=circumstances,
        results=results_file(contest),
        records=[],
    )
    for peer, reason in reasons.items():
        if reason is not None:
            arena.add(AbsenceRecord(circumstances=circumstances, engine=peer.name, file="", reason=reason))
    return arena


def _file(name: str, base_file: Path, settings: Settings, sources: Path, environment: Path) -> Path:
    """Return the file that a name stands for; made where it is not there or older than what it is made from."""
    from qwenstack.peers.driver_process import Done, DriverProcess
    from qwenstack.peers.environment import QUANTISER, absence, peer_command

    if name == _STORED:
        return base_file
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise ConfigError(f"There is no file {name!r}.")
        return Path(name).resolve()
    made = model_cache(settings.hub).path.parent / "bench" / f"{base_file.stem}.{name}.gguf"
    if made.exists() and made.stat().st_mtime >= base_file.stat().st_mtime:
        return made
    if (reason := absence(QUANTISER, environment)) is not None:
        raise EngineError(f"A file of type {name} is made by {QUANTISER.name}. {reason}")
    say(f"making {made}")
    made.parent.mkdir(parents=True, exist_ok=True)
    unfinished = made.with_suffix(".partial")
    with DriverProcess(QUANTISER.name, peer_command(QUANTISER, sources, environment)) as driver:
        driver.ask({"op": "quantise", "source": str(base_file), "target": str(unfinished), "type": name}, Done)
    unfinished.replace(made)
    return made


def _circumstances(sources: Path, num_threads: int) -> Circumstances:
    import shlex

    from qwenstack.peers.records import Circumstances

    machine = describe_machine()
    return Circumstances(
        run=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["qwenstack", *sys.argv[1:]]),
        commit=_commit(sources),
        cpu=machine.cpu,
        cpu_flags=machine.cpu_flags,
        num_cores=machine.num_cores,
        memory_bytes=machine.memory_bytes,
        platform=machine.platform,
        num_threads=num_threads,
    )


def _commit(sources: Path) -> str:
    """Return the commit of the sources, with `+` where they have changes; empty where git does not know them."""
    import shutil
    import subprocess

    git = shutil.which("git")
    if git is None:
        return ""

    def ask(*arguments: str) -> str:
        return subprocess.run([git, "-C", str(sources), *arguments], capture_output=True, text=True, check=False).stdout

    return ask("rev-parse", "HEAD").strip() + ("+" if ask("status", "--porcelain", "-uno").strip() else "")


def say(text: str) -> None:
    """Tell people how far it is."""
    sys.stderr.write(f"{text}\n")


def print_records(arena: Arena, *, as_json: bool) -> None:
    """Print what this run found."""
    from qwenstack.peers.records import AbsenceRecord, PerplexityRecord, SpeedRecord, as_line

    if as_json:
        for record in arena.records:
            sys.stdout.write(as_line(record))
        return
    speeds = [record for record in arena.records if isinstance(record, SpeedRecord)]
    if speeds:
        print_table(
            ("FILE", "WORKLOAD", "ENGINE", "TOKENS/S", "OURS/THEIRS", "OF MEMORY", "CACHED", "ALL"),
            [
                (
                    record.file,
                    record.workload,
                    record.engine,
                    f"{record.tokens_per_second:.1f}",
                    "" if record.ratio is None else f"{record.ratio:.2f}",
                    "" if record.bandwidth_share is None else f"{record.bandwidth_share:.0%}",
                    "" if record.cached_tokens is None else str(record.cached_tokens),
                    " ".join(f"{speed:.1f}" for speed in record.tokens_per_second_runs),
                )
                for record in speeds
            ],
        )
    scored = [record for record in arena.records if isinstance(record, PerplexityRecord)]
    if scored:
        print_table(
            ("FILE", "ENGINE", "PERPLEXITY", "TOKENS"),
            [(record.file, record.engine, f"{record.perplexity:.4f}", str(record.num_tokens)) for record in scored],
        )
    absent = [record for record in arena.records if isinstance(record, AbsenceRecord)]
    if absent:
        print_table(
            ("FILE", "ENGINE", "NO FIGURE BECAUSE"), [(one.file or "any", one.engine, one.reason) for one in absent]
        )
