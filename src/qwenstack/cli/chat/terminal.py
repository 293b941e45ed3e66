"""The terminal as the chat sees it: lines in, with editing and a history; answers and notes out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Protocol

_MAX_HISTORY_LINES = 1000
_DIM, _RESET = "\033[2m", "\033[0m"
_THINK_START, _THINK_END = "<think>", "</think>"
_CONTROL_CHARACTERS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
"""To delete: a model must not be able to move the cursor, rename the window or ring the bell."""
for _kept in "\n\t":
    del _CONTROL_CHARACTERS[ord(_kept)]


class Terminal(Protocol):
    """Where a person types and reads."""

    def read_line(self, prompt: str) -> str:
        """Return one line.

        Raises:
            EOFError: the user closed the input (Ctrl-D).
            KeyboardInterrupt: the user pressed Ctrl-C.
        """
        ...

    def write(self, text: str) -> None:
        """Show a piece of an answer at once."""
        ...

    def end_answer(self) -> None:
        """Finish the line that an answer, or what there is of it, ended in."""
        ...

    def note(self, text: str) -> None:
        """Say something about the chat itself."""
        ...


def printable(text: str) -> str:
    """Remove what a terminal would obey instead of showing."""
    return text.translate(_CONTROL_CHARACTERS)


class ConsoleTerminal:
    """Standard input and output, edited with readline where Python has it."""

    def __init__(self, *, has_colour: bool) -> None:
        """Thinking and notes are dimmed where `has_colour`."""
        self._has_colour = has_colour
        self._is_dim = False

    def read_line(self, prompt: str) -> str:
        """Return one line; what a paste brought along in further lines stays in it."""
        return input(prompt)

    def write(self, text: str) -> None:
        """Show a piece of an answer, thinking dimmed."""
        shown = printable(text)
        if self._has_colour and _THINK_START in shown:
            shown = shown.replace(_THINK_START, _DIM + _THINK_START, 1)
            self._is_dim = True
        if self._is_dim and _THINK_END in shown:
            shown = shown.replace(_THINK_END, _THINK_END + _RESET, 1)
            self._is_dim = False
        sys.stdout.write(shown)
        sys.stdout.flush()

    def end_answer(self) -> None:
        """Finish the line, and the dimming of thoughts that were cut off."""
        sys.stdout.write(f"{_RESET if self._is_dim else ''}\n")
        sys.stdout.flush()
        self._is_dim = False

    def note(self, text: str) -> None:
        """Print a dimmed line."""
        sys.stdout.write(f"{_DIM}{text}{_RESET}\n" if self._has_colour else f"{text}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def input_history(path: Path) -> Generator[None]:
    """Offer the lines of earlier chats with the arrow keys, and keep the new ones in a file only the user can read."""
    readline = _readline()
    if readline is None:
        yield
        return
    with contextlib.suppress(OSError):  # a history that cannot be read or kept is no reason not to chat
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))
        readline.read_history_file(path)
    num_before = readline.get_current_history_length()
    readline.set_history_length(_MAX_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.append_history_file(readline.get_current_history_length() - num_before, path)


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # Python on Windows has none
        return None
    return readline
