"""What reaches the terminal: text, never orders from the model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.cli.chat.terminal import ConsoleTerminal, input_history, printable


def test_escape_sequences_of_a_model_lose_their_power():
    assert printable("\x1b]0;owned\x07\x1b[2Jhi\r\x9b31m\tthere\n") == "]0;owned[2Jhi31m\tthere\n"


@given(text=st.text())
@settings(deadline=None)
def test_only_line_ends_and_tabs_remain_of_all_control_characters(text: str):
    shown = printable(text)
    assert not any((ord(sign) < 0x20 and sign not in "\n\t") or 0x7F <= ord(sign) < 0xA0 for sign in shown)
    assert [sign for sign in text if sign.isalnum()] == [sign for sign in shown if sign.isalnum()]


def test_thinking_is_dimmed_and_a_cut_off_thought_does_not_dim_what_follows(capsys: pytest.CaptureFixture[str]):
    terminal = ConsoleTerminal(has_colour=True)
    for piece in ("<think>", "hm", "</think>", "yes"):
        terminal.write(piece)
    terminal.end_answer()
    assert capsys.readouterr().out == "\033[2m<think>hm</think>\033[0myes\n"
    terminal.write("<think>hm")
    terminal.end_answer()
    terminal.write("x")
    assert capsys.readouterr().out == "\033[2m<think>hm\033[0m\nx"


def test_without_colour_nothing_is_added(capsys: pytest.CaptureFixture[str]):
    terminal = ConsoleTerminal(has_colour=False)
    terminal.write("<think>hm</think>")
    terminal.note("note")
    assert capsys.readouterr().out == "<think>hm</think>note\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no readline")
def test_a_history_that_cannot_be_kept_does_not_stop_the_chat(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with input_history(blocked / "chat_history"):
        pass
