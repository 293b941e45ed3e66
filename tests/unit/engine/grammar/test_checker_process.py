"""The process that checks grammars: what becomes of a request when it dies or gets no processor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from support.grammar_walks import BYTE_TABLE

from qwenstack.core.errors import CapacityError, EngineError
from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar import checker_process
from qwenstack.engine.grammar.checker_process import CheckerProcess
from qwenstack.engine.grammar.wire import Usable

GRAMMAR = Grammar(kind="regex", source="a+")


@pytest.fixture
def checker() -> Iterator[CheckerProcess]:
    checker = CheckerProcess(BYTE_TABLE)
    assert isinstance(checker.check(GRAMMAR), Usable)
    yield checker
    checker.stop()


def pid_of_the_checker() -> int:
    (pid,) = [
        child.pid
        for child in psutil.Process().children()
        if any("qwenstack.engine.grammar.checker" in word for word in child.cmdline())
    ]
    return pid


def test_a_process_without_a_processor_is_no_failure_of_the_engine(
    checker: CheckerProcess, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checker_process, "_REPLY_TIMEOUT_S", 0.2)
    os.kill(pid_of_the_checker(), signal.SIGSTOP)
    with pytest.raises(CapacityError, match="try again"):
        checker.check(GRAMMAR)
    monkeypatch.undo()
    assert isinstance(checker.check(GRAMMAR), Usable)


def test_a_process_that_died_is_started_again(checker: CheckerProcess):
    os.kill(pid_of_the_checker(), signal.SIGKILL)
    with pytest.raises(EngineError, match="died"):
        checker.check(GRAMMAR)
    assert isinstance(checker.check(GRAMMAR), Usable)
