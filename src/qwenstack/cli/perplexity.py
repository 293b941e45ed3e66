"""`qwenstack bench perplexity`: how well engines foresee a text with each file, which says what a faster file costs."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from qwenstack.cli.contest import Arena, Contest, prepare, print_records, say
from qwenstack.cli.options import AsJson, Assignments, ModelArgument
from qwenstack.core.errors import ConfigError

_DEFAULT_CONTEST = Contest()
_DATA = "QWENSTACK_DATA"


def perplexity(
    model: ModelArgument = None,
    /,
    *,
    text: Annotated[
        Path | None,
        Parameter(help=f"A UTF-8 file; default: the Chinese and English paragraphs of XQuAD in the folder ${_DATA}."),
    ] = None,
    language: Annotated[
        Literal["zh", "en"] | None,
        Parameter(help=f"One language alone: its paragraphs of XQuAD, then chapters of a textbook, in ${_DATA}."),
    ] = None,
    window: Annotated[int, Parameter(validator=Number(gte=2), help="Tokens that are scored together.")] = 512,
    max_tokens: Annotated[int, Parameter(validator=Number(gte=2), help="Tokens of the text, at most.")] = 65_536,
    contest: Contest = _DEFAULT_CONTEST,
    as_json: AsJson = False,
    assignments: Assignments = (),
) -> None:
    """Measure how well engines foresee a text with each file: what a faster file costs in quality."""
    content, name = _read(text, language)
    arena = prepare(contest, model, assignments)
    ids = _encode(content, arena.base_file)[:max_tokens]
    windows = [part for start in range(0, len(ids), window) if len(part := ids[start : start + window]) > 1]
    if not windows:
        raise ConfigError(f"{name} has fewer than two tokens; give a longer text.")
    for path in arena.files:
        for engine in arena.commands:
            say(f"{path.name}: {engine}")
            _score(arena, engine, path, windows, name)
    print_records(arena, as_json=as_json)


def _read(text: Path | None, language: Literal["zh", "en"] | None) -> tuple[str, str]:
    """Return the text, and what it is called."""
    from qwenstack.peers.text import read_language, read_text, read_xquad

    if text is not None:
        if language is not None:
            raise ConfigError("A file has its own language: give `--text` or `--language`.")
        return read_text(text), text.name
    folder = os.environ.get(_DATA)
    if not folder:
        raise ConfigError(f"There is no text: give a UTF-8 file with `--text`, or set {_DATA} to the data folder.")
    if language is not None:
        return read_language(Path(folder), language), f"XQuAD and chapters, {language}"
    return read_xquad(Path(folder)), "XQuAD zh + en"


def _score(arena: Arena, engine: str, path: Path, windows: list[list[int]], name: str) -> None:
    from qwenstack.peers.driver_process import DriverProcess, Loaded, PeerError, Scored
    from qwenstack.peers.records import AbsenceRecord, PerplexityRecord

    where = arena.circumstances
    try:
        with DriverProcess(engine, arena.commands[engine]) as driver:
            loaded = driver.ask({"op": "load", "path": str(path), "num_threads": where.num_threads}, Loaded)
            scored = driver.ask({"op": "score", "windows": windows}, Scored)
    except PeerError as error:
        say(str(error))
        arena.add(AbsenceRecord(circumstances=where, engine=engine, file=path.name, reason=str(error)))
        return
    arena.add(
        PerplexityRecord(
            circumstances=where,
            file=path.name,
            file_bytes=path.stat().st_size,
            engine=engine,
            version=loaded.version,
            text=name,
            window=len(windows[0]),
            num_tokens=scored.num_tokens,
            perplexity=round(math.exp(scored.nll / scored.num_tokens), 4),
        )
    )


def _encode(text: str, model_file: Path) -> list[int]:
    from qwenstack.engine.loading import load_tokenizer
    from qwenstack.hub.checkpoint import open_checkpoint

    with open_checkpoint(model_file) as checkpoint:
        return load_tokenizer(checkpoint).encode(text)
