"""The process that checks grammars: what becomes of a request when it dies or gets no processor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
from support.grammar_walks import BYTE_TABLE

from qwenstack.core.errors import CapacityError, EngineError
from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar import checker_process
from qwenstack.engine.grammar.checker_process import CheckerProcess
from qwenstack.engine.grammar.wire import Usable

GRAMMAR = Grammar(kind="regex", source="a+")


@dataclass
class Running:
    """A checker and the process that works for it."""

    checker: CheckerProcess
    pid: int


@pytest.fixture
def running() -> Iterator[Running]:
    before = pids_of_checkers()  # engines that other tests share have theirs
    checker = CheckerProcess(BYTE_TABLE)
    assert isinstance(checker.check(GRAMMAR), Usable)
    (pid,) = pids_of_checkers() - before
    yield Running(checker, pid)
    checker.stop()


def pids_of_checkers() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE
        and any("qwenstack.engine.grammar.checker" in word for word in child.cmdline())
    }


def test_a_process_without_a_processor_is_no_failure_of_the_engine(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker_process, "_REPLY_TIMEOUT_S", 0.2)
    os.kill(running.pid, signal.SIGSTOP)
    with pytest.raises(CapacityError, match="try again"):
        running.checker.check(GRAMMAR)
    monkeypatch.undo()
    assert isinstance(running.checker.check(GRAMMAR), Usable)


def test_a_process_that_died_is_started_again(running: Running):
    os.kill(running.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="died"):
        running.checker.check(GRAMMAR)
    assert isinstance(running.checker.check(GRAMMAR), Usable)
