"""What the worker does with a command: the reply, the journal, the note of whom it is about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.toy import toy_model
from support.toy_worker import FragileEngine

from qwenstack.core.errors import EngineError
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import replay
from qwenstack.engine.flight_recorder import FlightRecorder, shared_memory
from qwenstack.engine.journal import AdapterLoaded, AdapterUnloaded, Admitted, RequestJournal, Session, read_journal
from qwenstack.engine.wire import AdapterRefused, Adapters, ListAdapters, LoadAdapter, Refused, Submit, UnloadAdapter
from qwenstack.engine.worker import Worker


class FakeChannel:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, event: Any) -> None:
        self.sent.append(event)


@pytest.fixture
def recorder() -> FlightRecorder:
    with shared_memory() as fd:
        return FlightRecorder(fd)


def open_session(path: Path) -> RequestJournal:
    session = Session(
        model_name="toy",
        model_fingerprint="toy",
        config=toy_model().config,
        kernels="none",
        versions={},
        started="2026-11-25T12:00:00+00:00",
    )
    return RequestJournal(path, session)


def test_adapters_are_journaled_and_loaded_again_by_a_replay(
    tmp_path: Path, recorder: FlightRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_session(tmp_path / "journal")
    engine = FragileEngine(toy_model(), journal=journal, recorder=recorder)
    channel: Any = FakeChannel()
    worker = Worker(engine, channel, recorder)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    for command in (
        LoadAdapter("law", Path("/a/law")),
        LoadAdapter("law", Path("/a/other")),
        Submit("one", [1], params, RequestOptions(adapter="law")),
        UnloadAdapter("law"),
        ListAdapters(),
        UnloadAdapter("law"),
    ):
        worker._obey(command)
    while engine.has_work:
        engine.step()
    loaded, refused, unloaded, listed, unknown = channel.sent
    assert [adapter.name for adapter in loaded.adapters] == ["law"]
    assert isinstance(refused, AdapterRefused)
    assert unloaded == listed == Adapters([])
    assert (unknown.error_type, unknown.code) == ("RequestError", "adapter_not_found")
    records = list(read_journal(tmp_path / "journal"))
    assert [type(record) for record in records[1:4]] == [AdapterLoaded, Admitted, AdapterUnloaded]
    monkeypatch.setattr(replay, "Engine", FragileEngine)
    ((session, body),) = replay.split_sessions(records)
    assert replay.replay_session(toy_model(), session, body).num_equal == 1
    other = [AdapterLoaded(0, "law", Path("/a/law"), "another digest"), *body[1:]]
    with pytest.raises(EngineError, match="not the one of the journal"):
        replay.replay_session(toy_model(), session, other)


def test_a_request_that_ends_the_process_while_it_is_taken_is_known_afterwards(recorder: FlightRecorder) -> None:
    class Fatal(FragileEngine):
        def add_request(self, *args: Any) -> None:
            os._exit(1)

    child = os.fork()
    if child == 0:
        channel: Any = FakeChannel()
        Worker(Fatal(toy_model()), channel, recorder)._obey(Submit("fatal", [1], SamplingParams()))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert recorder.read() == {"fatal"}


def test_a_refused_request_is_no_suspect(recorder: FlightRecorder) -> None:
    channel: Any = FakeChannel()
    worker = Worker(FragileEngine(toy_model()), channel, recorder)
    worker._obey(Submit("long", [1] * 1000, SamplingParams()))
    (event,) = channel.sent
    assert isinstance(event, Refused)
    assert event.code == "context_length_exceeded"
    assert recorder.read() == frozenset()
