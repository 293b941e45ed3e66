"""`qwenstack replay`: equal answers are success, another model or another answer is a sentence and exit code 1."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.toy import toy_model

from qwenstack.cli import replay as command
from qwenstack.cli.app import main
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import loading
from qwenstack.engine.engine import Engine
from qwenstack.engine.journal import RequestJournal, Session, model_fingerprint

STARTED = "2026-11-25T12:00:00+00:00"


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal of two sessions of the toy model, whose file holds a few bytes."""
    weights = tmp_path / "toy.gguf"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(command, "fetch_model", lambda _: SimpleNamespace(path=weights, name="toy"))
    monkeypatch.setattr(loading, "load_model", lambda config: toy_model(max_num_seqs=config.max_num_seqs))
    session = Session(
        model_name="toy",
        model_fingerprint=model_fingerprint(weights),
        config=toy_model().config,
        kernels="none",
        versions={},
        started=STARTED,
    )
    path = tmp_path / "journal"
    for _ in range(2):
        engine = Engine(toy_model(), journal=RequestJournal(path, session))
        for number in range(3):
            engine.add_request(str(number), [number + 1], SamplingParams(max_tokens=9, ignore_eos=True))
        while engine.has_work:
            engine.step()
    return path


def test_equal_answers_are_counted_by_session(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(journal), "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [(report["num_requests"], report["num_equal"], report["differences"]) for report in reports] == [
        (3, 3, [])
    ] * 2
    assert [(report["started"], report["model_name"]) for report in reports] == [(STARTED, "toy")] * 2
    assert main(["replay", str(journal)]) == 0
    lines = [line.rstrip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    words = [
        ["SESSION", f"1, begun {STARTED}"],
        ["3", "requests run again, in 9 steps"],
        ["3", "answers equal: the same tokens and the same end as then"],
        ["0", "answers different"],
    ]
    assert lines == [*words, ["SESSION", f"2, begun {STARTED}"], *words[1:]]


def test_what_could_not_be_compared_is_counted_with_the_reason(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request is given up, one has no end, and one answer belongs to a request of the file before."""
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    records = records[: next(at for at, record in enumerate(records[1:], 1) if record["type"] == "session")]
    ends = [record for record in records if record["type"] == "finished"]
    kept = [record for record in records if record not in ends[:2]]
    aborted = {"type": "aborted", "step": 4, "request_id": ends[0]["request_id"]}
    stranger = {**ends[2], "request_id": "earlier"}
    journal.write_text(
        "".join(
            json.dumps(record, separators=(",", ":")) + "\n" for record in [*kept[:-1], aborted, kept[-1], stranger]
        )
    )
    assert main(["replay", str(journal)]) == 0
    lines = [line.rstrip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [count for count, _ in lines] == ["SESSION", "3", "1", "0", "1", "1", "1"]
    assert [text for _, text in lines[4:]] == [
        "requests given up, as they were then: an answer that was cut off is not compared",
        "requests without an end in the journal: there is nothing to compare with",
        "answers left out: their requests are not in this file",
    ]


def test_the_first_difference_is_named(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = journal.read_text().splitlines()
    number, line = next((at, line) for at, line in enumerate(lines) if '"finished"' in line)
    record: dict[str, Any] = json.loads(line)
    lines[number] = json.dumps({**record, "digest": "0" * 64})
    journal.write_text("\n".join(lines))
    assert main(["replay", str(journal), "--json"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"error: Answer 0 of request '{record['request_id']}', which ended in step 8, differs")
    assert json.loads(out)[0]["num_equal"] == 2


def test_another_model_is_refused(journal: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "toy.gguf").write_bytes(b"others")
    assert main(["replay", str(journal)]) == 1
    assert "another 'toy'" in capsys.readouterr().err


def test_what_is_no_journal_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("notes")
    assert main(["replay", str(tmp_path / "notes")]) == 2
    assert "is not a journal" in capsys.readouterr().err
