"""`qwenstack chat` in a real pseudo-terminal, and in pipes: streaming, Ctrl-C, Ctrl-D, the history."""

from __future__ import annotations

import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

import qwenstack

SOURCES = str(Path(qwenstack.__file__).parent.parent)
PROGRAM = str(Path(__file__).parent / "chat_with_fake_model.py")
TIMEOUT_S = 30.0
READLINE_SETTLES_S = 0.3
"""readline prints its prompt a moment before it listens for signals; nobody's fingers are that fast."""
CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"


class Person:
    """Somebody at a terminal."""

    def __init__(self, *arguments: str) -> None:
        self._terminal, theirs = pty.openpty()
        environ = {**os.environ, "PYTHONPATH": SOURCES, "TERM": "xterm", "LANG": "C.UTF-8", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - Ctrl-C reaches only who controls the terminal
        )
        os.close(theirs)
        self._seen = b""

    def types(self, keys: str | bytes) -> None:
        os.write(self._terminal, keys.encode() if isinstance(keys, str) else keys)

    def sees(self, text: str) -> str:
        """Wait until the text appears; return what came before it, and forget both."""
        deadline = time.monotonic() + TIMEOUT_S
        while text.encode() not in self._seen:
            assert time.monotonic() < deadline, f"never saw {text!r}, only {self._seen!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    self._seen += os.read(self._terminal, 4096)
                except OSError:  # Linux says so when the other side is gone
                    pytest.fail(f"the chat ended without {text!r}: {self._seen!r}")
        before, _, self._seen = self._seen.partition(text.encode())
        return before.decode(errors="replace")

    def leaves(self) -> int:
        deadline = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self._terminal], [], [], 0.05)[0]:
                try:
                    self._seen += os.read(self._terminal, 4096)
                except OSError:
                    break
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def person() -> Generator[type[Person]]:
    people: list[Person] = []

    def sit_down(*arguments: str) -> Person:
        people.append(Person(*arguments))
        return people[-1]

    yield sit_down
    for somebody in people:
        somebody.close()


def test_a_conversation_streams_remembers_and_ends_with_ctrl_d(person):
    somebody = person()
    somebody.sees("> ")
    somebody.types("Hello\r")
    somebody.sees("1:Hello")
    somebody.sees("> ")
    somebody.types("你好\r")
    somebody.sees("3:你好")
    somebody.sees("> ")
    somebody.types(CTRL_D)
    assert somebody.leaves() == 0


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(person):
    somebody = person()
    somebody.sees("> ")
    somebody.types("forever\r")
    somebody.sees("1:forever1:for")
    somebody.types(CTRL_C)
    somebody.sees("stopped")
    somebody.sees("> ")
    somebody.types("next\r")
    somebody.sees("3:next")  # the stopped answer is part of the conversation
    somebody.sees("> ")
    somebody.types(CTRL_D)
    assert somebody.leaves() == 0


def test_ctrl_c_at_the_prompt_hints_first_and_then_leaves(person):
    somebody = person()
    somebody.sees("> ")
    time.sleep(READLINE_SETTLES_S)
    somebody.types(CTRL_C)
    somebody.sees("Ctrl-C again")
    somebody.sees("> ")
    time.sleep(READLINE_SETTLES_S)
    somebody.types(CTRL_C)
    assert somebody.leaves() == 0


def test_the_arrow_key_brings_back_what_was_typed_in_an_earlier_chat(person, home: Path):
    somebody = person()
    somebody.sees("> ")
    somebody.types("remember me\r")
    somebody.sees("1:remember me")
    somebody.sees("> ")
    somebody.types("/exit\r")
    assert somebody.leaves() == 0

    history = home / ".local" / "state" / "qwenstack" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.read_text().splitlines()[-2:] == ["remember me", "/exit"]

    again = person()
    again.sees("> ")
    again.types(UP + UP + b"\r")
    again.sees("1:remember me")


def test_a_block_of_lines_is_one_message(person):
    somebody = person()
    somebody.sees("> ")
    somebody.types('"""\r')
    somebody.sees(". ")
    somebody.types("one\r")
    somebody.sees(". ")
    somebody.types('two"""\r')
    somebody.sees("1:one\r\ntwo")


def in_a_pipe(*arguments: str, text: str | bytes = "") -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "PYTHONPATH": SOURCES}
    given = text.encode() if isinstance(text, str) else text
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments], input=given, capture_output=True, timeout=TIMEOUT_S, env=environ
    )


def test_one_answer_goes_to_standard_output_and_nothing_else():
    done = in_a_pipe("-p", "用Python写快速排序")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "1:用Python写快速排序\n", b"")


@pytest.mark.parametrize("arguments", [[], ["-p", "-"]])
def test_what_is_piped_in_is_the_message(arguments: list[str]):
    done = in_a_pipe(*arguments, "--system", "s", text="first\nsecond\n")
    assert (done.returncode, done.stdout.decode()) == (0, "2:first\nsecond\n\n")


def test_a_message_may_begin_with_a_hyphen():
    assert in_a_pipe("-p", "-5 度冷吗").stdout.decode() == "1:-5 度冷吗\n"


def test_an_empty_pipe_is_a_wrong_request():
    done = in_a_pipe(text=" \n")
    assert done.returncode == 2
    assert b"nothing to answer" in done.stderr


def test_ctrl_c_during_a_single_answer_ends_it_quietly():
    environ = {**os.environ, "PYTHONPATH": SOURCES}
    process = subprocess.Popen(
        [sys.executable, PROGRAM, "-p", "forever"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    )
    assert process.stdout is not None
    assert process.stdout.read(9) == b"1:forever"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=2)
    assert process.returncode == 130
    assert err == b""
