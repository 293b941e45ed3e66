"""What a process noted last is what another reads after its death."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engine.flight_recorder import FlightRecorder, shared_memory


@pytest.fixture
def recorder() -> FlightRecorder:
    with shared_memory() as fd:
        return FlightRecorder(fd)


def in_a_child_that_dies(act: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_notes_of_a_killed_process_are_read_by_the_other(recorder: FlightRecorder) -> None:
    assert recorder.read() == frozenset()
    in_a_child_that_dies(lambda: recorder.computing(["eins", "二", "eins"]))
    assert recorder.read() == {"eins", "二"}
    in_a_child_that_dies(recorder.nobody)
    assert recorder.read() == frozenset()
    in_a_child_that_dies(recorder.anyone)
    assert recorder.read() is None


def test_more_names_than_there_is_room_for_may_be_anyone(recorder: FlightRecorder) -> None:
    recorder.computing([f"{number:0300}" for number in range(4096)])
    assert recorder.read() is None
    recorder.computing([f"{number:0200}" for number in range(4096)])
    assert recorder.read() is not None
    assert len(recorder.read() or ()) == 4096


@given(st.binary(min_size=4, max_size=64))
def test_whatever_a_dying_process_scribbled_is_read_without_failing(scribble: bytes) -> None:
    with shared_memory() as fd:
        os.pwrite(fd, scribble, 0)
        recorder = FlightRecorder(fd)
    names = recorder.read()
    assert names is None or all(isinstance(name, str) for name in names)
    recorder.close()
