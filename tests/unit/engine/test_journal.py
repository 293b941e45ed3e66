"""The journal: what was written is what is run again, whatever happened to the file in between."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy import VOCABULARY, ToyDecoder, toy_model

from qwenstack.core.errors import ConfigError
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.engine import Engine
from qwenstack.engine.hooks import Journal
from qwenstack.engine.journal import (
    Aborted,
    Admitted,
    Finished,
    JournalError,
    Record,
    RequestJournal,
    Session,
    read_journal,
    token_digest,
)
from qwenstack.engine.replay import SessionReport, replay_session, split_sessions

SESSION = Session(
    model_name="toy",
    model_fingerprint="toy",
    config=toy_model().config,
    kernels="none",
    versions={"qwenstack": "0"},
    started="2026-11-25T12:00:00+00:00",
)
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def drive(engine: Engine, requests: list[tuple[int, list[int], SamplingParams]], aborts: dict[int, str]) -> None:
    """Let requests arrive and leave at given steps, and run to the end."""
    step, arrived = 0, 0
    while arrived < len(requests) or engine.has_work:
        for number, (arrival, prompt, params) in enumerate(requests):
            if arrival == step:
                engine.add_request(str(number), prompt, params, RequestOptions(tenant=f"t{number}"))
                arrived += 1
        if step in aborts:
            engine.abort(aborts[step])
        engine.step()
        step += 1


def replay_file(path: Path, **options: Any) -> list[SessionReport]:
    return [replay_session(toy_model(**options), *session) for session in split_sessions(read_journal(path))]


requests = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40),
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 1.0]),
            max_tokens=st.integers(1, 30),
            seed=st.none() | st.integers(0, 9),
            n=st.integers(1, 2),
        ),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(requests=requests, aborts=st.dictionaries(st.integers(0, 30), st.sampled_from("012345"), max_size=3))
def test_a_session_run_again_gives_the_same_answers(
    tmp_path_factory: pytest.TempPathFactory,
    requests: list[tuple[int, list[int], SamplingParams]],
    aborts: dict[int, str],
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    engine = Engine(toy_model(), journal=RequestJournal(path, SESSION))
    drive(engine, requests, aborts)
    for options in ({}, {"num_blocks": 17, "max_num_batched_tokens": 16}):
        (report,) = replay_file(path, **options)
        assert report.differences == ()
        assert report.num_requests == len(requests)
        assert report.num_lost == 0
        assert report.num_equal == sum(isinstance(record, Finished) for record in read_journal(path))


def test_a_session_on_the_same_engine_takes_the_same_steps(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    engine = Engine(toy_model(), journal=RequestJournal(path, SESSION))
    drive(engine, [(at, [at + 1] * 20, GREEDY) for at in range(5)], {3: "0"})
    batches: list[list[int]] = []

    class Watching(ToyDecoder):
        def forward(self, batch: Any, kv_cache: Any) -> np.ndarray:
            batches.append(batch.token_ids.tolist())
            return super().forward(batch, kv_cache)

    (session,) = split_sessions(read_journal(path))
    model = toy_model()
    replay_session(dataclasses.replace(model, decoder=Watching()), *session)
    then, batches = batches, []
    again = Engine(dataclasses.replace(model, decoder=Watching()))
    drive(again, [(at, [at + 1] * 20, GREEDY) for at in range(5)], {3: "0"})
    assert then == batches


def test_the_first_answer_that_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    engine = Engine(toy_model(), journal=RequestJournal(path, SESSION))
    drive(engine, [(0, [1], GREEDY), (1, [2], GREEDY), (2, [3], GREEDY)], {})

    class Other(ToyDecoder):
        def logits(
            self, x_RD: np.ndarray, activation_bits: int | None = None, *, out_RV: np.ndarray | None = None
        ) -> np.ndarray:
            return np.roll(x_RD, 1, axis=1)

    ((session, records),) = split_sessions(read_journal(path))
    report = replay_session(dataclasses.replace(toy_model(), decoder=Other()), session, records)
    assert [difference.request_id for difference in report.differences] == ["0", "1", "2"]
    assert report.num_equal == 0
    assert "Answer 0 of request '0', which ended in step 11, differs: 12 tokens, length" in str(report.differences[0])


def write_some(path: Path, *, died: bool) -> None:
    journal = RequestJournal(path, SESSION)
    engine = Engine(toy_model(), journal=journal)
    engine.add_request("a", [1], GREEDY)
    engine.add_request("b", [2], dataclasses.replace(GREEDY, max_tokens=20))
    for _ in range(15 if died else 30):
        engine.step()
    journal.close()


def test_a_death_leaves_a_request_without_its_end(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_some(path, died=True)
    (report,) = replay_file(path)
    assert (report.num_equal, report.num_lost, report.differences) == (1, 1, ())


@pytest.mark.parametrize("num_cut", [1, 2, 40])
def test_a_line_that_a_death_cut_short_is_left_out_and_the_next_session_is_read(tmp_path: Path, num_cut: int) -> None:
    path = tmp_path / "journal"
    write_some(path, died=False)
    os.truncate(path, path.stat().st_size - num_cut)
    is_whole = num_cut == 1  # only its end of line is missing
    (report,) = replay_file(path)
    assert (report.num_equal, report.num_lost) == ((2, 0) if is_whole else (1, 1))
    write_some(path, died=False)
    reports = replay_file(path)
    assert [report.num_equal for report in reports] == [2 if is_whole else 1, 2]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_some(path, died=False)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:-5]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match="Line 2 of"):
        list(read_journal(path))


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    before = os.umask(0)
    try:
        RequestJournal(path, SESSION).close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        RequestJournal(path, SESSION).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("my notes")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    for path in (notes, link, tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(ConfigError, match="journal_path"):
            RequestJournal(path, SESSION)
    assert notes.read_text() == "my notes"
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(JournalError, match="not a journal"):
        list(read_journal(notes))


def admit(journal: Journal, step: int, request_id: str) -> None:
    journal.admitted(step, request_id, [1] * 50, GREEDY, RequestOptions(), 5)


def test_a_full_file_makes_room_for_a_new_one_that_can_be_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = RequestJournal(path, SESSION, max_file_bytes=4096)
    for step in range(100):
        admit(journal, step, str(step))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["journal", "journal.1", "journal.2", "journal.3"]
    assert all(file.stat().st_size <= 4096 for file in tmp_path.iterdir())
    steps = []
    for name in ("journal.3", "journal.2", "journal.1", "journal"):
        session, *records = read_journal(tmp_path / name)
        assert isinstance(session, Session)
        assert all(isinstance(record, Admitted) for record in records)
        assert session.step == records[0].step
        steps.extend(record.step for record in records)
    assert steps == list(range(steps[0], 100))


def test_a_later_file_is_run_from_its_own_first_step(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = RequestJournal(path, SESSION, max_file_bytes=6000)
    drive(Engine(toy_model(), journal=journal), [(3 * at, [at + 1], GREEDY) for at in range(30)], {})
    (report,) = replay_file(path)
    assert report.differences == ()
    assert 0 < report.num_requests < 30
    assert report.num_equal == report.num_requests


def test_a_full_disk_ends_the_journal_and_not_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = RequestJournal(tmp_path / "journal", SESSION)
    monkeypatch.setattr(os, "write", lambda _, data: len(data) // 2)
    engine = Engine(toy_model(), journal=journal)
    drive(engine, [(0, [1], GREEDY), (1, [2], GREEDY)], {})
    assert caplog.text.count("the disk is full") == 1
    monkeypatch.undo()
    assert sum(1 for _ in read_journal(tmp_path / "journal")) == 1


def test_every_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = RequestJournal(path, SESSION)
    params = SamplingParams(stop="停", logit_bias={7: -1.5}, seed=None, temperature=0.1)
    journal.admitted(3, "a", [1, 2], params, RequestOptions(tenant="甲", adapter="law"), 2**62 - 1)
    journal.aborted(4, "a")
    journal.finished(5, "a", 1, [9, 8], "stop")
    session, admitted, *rest = read_journal(path)
    expected: list[Record] = [Aborted(4, "a"), Finished(5, "a", 1, "stop", 2, token_digest([9, 8]))]
    assert session == SESSION
    assert rest == expected
    assert isinstance(admitted, Admitted)
    assert (admitted.seed, admitted.options.adapter) == (2**62 - 1, "law")
    assert dataclasses.replace(admitted.params, stop=("停",), stop_token_ids=()) == params
