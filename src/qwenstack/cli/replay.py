"""`qwenstack replay`: run a journal again and see whether every answer comes out as it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from qwenstack.cli.loading import fetch_model
from qwenstack.cli.options import AsJson, Assignments, ModelArgument
from qwenstack.cli.output import print_json, print_table
from qwenstack.cli.settings import load_settings
from qwenstack.core.errors import EngineError

if TYPE_CHECKING:
    from qwenstack.engine.journal import Session
    from qwenstack.engine.loading import LoadedModel
    from qwenstack.engine.replay import SessionReport

_NO_QUEUE_LIMIT = 1 << 20
"""A cache of another size may let requests wait longer; that is no reason to refuse one that was taken."""


def replay(
    journal: Annotated[Path, Parameter(help="A file that engine.journal_path made.")],
    model: ModelArgument = None,
    /,
    *,
    as_json: AsJson = False,
    assignments: Assignments = (),
) -> None:
    """Run the requests of a journal again, step for step, and compare every answer with the one it had.

    Speculation and the prefix cache on disk stay off: answers are the same, bit for bit, without them.
    """
    replayed = list(_replay_file(journal, model, assignments))
    if as_json:
        print_json([_as_json(session, report) for session, report in replayed])
    else:
        for number, (session, report) in enumerate(replayed, start=1):
            _print_report(number, session, report)
    differences = [difference for _, report in replayed for difference in report.differences]
    if differences:
        more = f" {len(differences) - 1} more differ." if len(differences) > 1 else ""
        raise EngineError(f"{differences[0]}{more}")


def _replay_file(
    journal: Path, model: str | None, assignments: tuple[str, ...]
) -> Iterator[tuple[Session, SessionReport]]:
    """Yield each session with its report; sessions of the same configuration share one loaded model."""
    from qwenstack.engine.journal import read_journal
    from qwenstack.engine.replay import replay_session, split_sessions

    loaded: LoadedModel | None = None
    last: Session | None = None
    for session, records in split_sessions(read_journal(journal)):
        if loaded is None or last is None or session.config != last.config:
            loaded = _load(session, model, assignments)
        last = session
        yield session, replay_session(loaded, session, records)


def _load(session: Session, model: str | None, assignments: tuple[str, ...]) -> LoadedModel:
    """Load the model of a session as it was configured.

    Raises:
        EngineError: it is another model.
    """
    from qwenstack.engine.journal import model_fingerprint
    from qwenstack.engine.loading import load_model

    recorded = session.config.model_path
    named = model or (str(recorded) if recorded.exists() else session.model_name)
    found = fetch_model(load_settings(assignments, {"model": named}).value)
    if model_fingerprint(found.path) != session.model_fingerprint:
        raise EngineError(
            f"The journal was written with another {session.model_name!r} than {str(found.path)!r}: their files "
            "differ. Give the right one after the journal."
        )
    return load_model(
        dataclasses.replace(session.config, model_path=found.path, journal_path=None, max_num_waiting=_NO_QUEUE_LIMIT)
    )


def _as_json(session: Session, report: SessionReport) -> dict[str, object]:
    counts = {
        field.name: getattr(report, field.name) for field in dataclasses.fields(report) if field.name != "differences"
    }
    differences = [
        {"request_id": difference.request_id, "index": difference.index, "difference": str(difference)}
        for difference in report.differences
    ]
    return {"started": session.started, "model_name": session.model_name, **counts, "differences": differences}


def _print_report(number: int, session: Session, report: SessionReport) -> None:
    """Print what was compared, and what was not where there is any."""
    compared = [
        (report.num_requests, f"requests run again, in {report.num_steps} steps"),
        (report.num_equal, "answers equal: the same tokens and the same end as then"),
        (len(report.differences), "answers different"),
    ]
    not_compared = [
        (report.num_aborted, "requests given up, as they were then: an answer that was cut off is not compared"),
        (report.num_lost, "requests without an end in the journal: there is nothing to compare with"),
        (report.num_left_out, "answers left out: their requests are not in this file"),
    ]
    rows = [*compared, *((count, text) for count, text in not_compared if count)]
    print_table(("SESSION", f"{number}, begun {session.started}"), [(str(count), text) for count, text in rows])
