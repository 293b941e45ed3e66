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
        started="2026-11-25T12:00:00+00:00",
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
    assert main(["replay", str(journal)]) == 0
    assert "EQUAL ANSWERS" in capsys.readouterr().out


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
