"""What one rendering of a template may cost, counted instead of timed, so that a slow machine changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from jinja2 import TemplateError

BASE_STEPS = 50_000
"""Steps for a conversation of nothing; a step is about a microsecond. Qwen3's template takes about 60 a message."""
STEPS_PER_VALUE = 500
"""Further steps for each string, number and container of the conversation."""
BASE_CHARS = 1 << 18
"""Characters for a conversation of nothing, of all that is written, also into variables."""
CHARS_PER_CHAR = 4
"""Further characters for each character of the conversation."""
MAX_NESTING = 80
"""Depth of lists and objects within each other; what callers send has less."""

_CHARS_PER_STEP = 256
"""A step pays for copying this many characters."""


class BudgetExceededError(TemplateError):
    """The template does more than any honest one."""


class Budget:
    """What is left of one rendering's allowance; it grows with the conversation, not with the template's wishes."""

    def __init__(self, variables: Mapping[str, object]) -> None:
        """Measure the conversation."""
        num_values, num_chars = _measure(variables)
        self.max_chars = BASE_CHARS + CHARS_PER_CHAR * num_chars
        """Also the longest single string."""
        self._chars_left = self.max_chars
        self._steps_left = BASE_STEPS + STEPS_PER_VALUE * num_values + num_chars // 4

    def spend(self, num_steps: int) -> None:
        """Pay for work.

        Raises:
            BudgetExceededError: nothing is left.
        """
        self._steps_left -= num_steps
        if self._steps_left < 0:
            raise BudgetExceededError("it runs far longer than a conversation of this size needs")

    def write(self, text: str) -> str:
        """Pay for text that goes to the output or into a variable's block.

        Raises:
            BudgetExceededError: the template writes too much.
        """
        self.spend(1)
        self._chars_left -= len(text)
        if self._chars_left < 0:
            raise BudgetExceededError(f"it writes more than {self.max_chars} characters")
        return text

    def allow_text(self, num_chars: int) -> None:
        """Pay for a string before it is built.

        Raises:
            BudgetExceededError: it would be too long.
        """
        if num_chars > self.max_chars:
            raise BudgetExceededError(f"it builds a text of more than {self.max_chars} characters")
        self.spend(1 + num_chars // _CHARS_PER_STEP)

    def weigh(self, value: object) -> object:
        """Pay for walking through a value once: comparing it, copying it, writing it out.

        Raises:
            BudgetExceededError: it is too large or nested too deeply; sharing counts each time it is met.
        """
        if isinstance(value, str):
            self.allow_text(len(value))
        elif isinstance(value, (list, tuple, dict, range)):
            self._weigh_container(cast("Iterable[object]", value))
        return cast("object", value)

    def _weigh_container(self, value: Iterable[object]) -> None:
        levels: list[Iterator[object]] = [iter([value])]
        while levels:
            if len(levels) > MAX_NESTING:
                raise BudgetExceededError(f"it nests values more than {MAX_NESTING} deep")
            item = next(levels[-1], _END)
            if item is _END:
                levels.pop()
            elif isinstance(item, str):
                self.allow_text(len(item))
            else:
                self.spend(1)
                if isinstance(item, range):
                    self.spend(len(item))
                elif (children := _children(item)) is not None:
                    levels.append(children)


_END = object()


def _children(value: object) -> Iterator[object] | None:
    if isinstance(value, dict):
        entries = cast("dict[object, object]", value)
        return (part for entry in entries.items() for part in entry)
    if isinstance(value, (list, tuple)):
        return iter(cast("list[object]", value))
    return None


def _measure(value: object) -> tuple[int, int]:
    """Count the values and characters of plain data that a caller passes."""
    num_values, num_chars, waiting = 0, 0, [value]
    while waiting:
        item = waiting.pop()
        num_values += 1
        if isinstance(item, str):
            num_chars += len(item)
        elif (children := _children(item)) is not None:
            waiting.extend(children)
    return num_values, num_chars
