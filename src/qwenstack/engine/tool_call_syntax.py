"""The ways in which Qwen models write a tool call, read from text that may not be all there yet.

Every reader looks at the text from its start and says what it is, that more of it is needed, or that it is none: the
same answer however the text arrived.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn, cast

from qwenstack.engine.grammar.xml_calls import is_plain_text

MAX_NAME_CHARS = 256
"""As long as the server lets a tool's name be; a longer one is no name."""
_MAX_QUOTED_NAME = 6 * MAX_NAME_CHARS + 2
"""Each character as `\\uXXXX`, and the quotes."""

FENCE = "```"
"""Before and after a block of code in Markdown."""
_FENCE_LANGUAGE = "json"
_BLANKS = " \t\r\n"
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_STRING_SO_FAR = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*\\?')
_TAG_NAME_END = re.compile(r"[<>\n]")


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a call or of an argument, complete."""

    name: str
    length: int
    """Characters up to where its content begins."""


class NeedMore:
    """What is there may become a head."""


class NoHead:
    """What is there is no head and cannot become one."""


Reading = Head | NeedMore | NoHead


def is_beginning(text: str, whole: str) -> bool:
    """Whether more text could make this the whole; the empty text is the beginning of everything."""
    return whole.startswith(text) and text != whole


def num_held_back(text: str, mark: str) -> int:
    """Return how many characters at the text's end may be the beginning of the mark."""
    longest = min(len(mark) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if mark.startswith(text[-length:])), 0)


def read_hermes_head(text: str) -> Reading:
    """Read `{"name": NAME, "arguments": ` before an object, with blanks as JSON allows them."""
    at, name = 0, ""
    for part in ("{", '"name"', ":", "NAME", ",", '"arguments"', ":"):
        at = _skip_blanks(text, at)
        if part == "NAME":
            quoted = _read_quoted_name(text[at : at + _MAX_QUOTED_NAME])
            if not isinstance(quoted, Head):
                return quoted
            at, name = at + quoted.length, quoted.name
        elif text.startswith(part, at):
            at += len(part)
        else:
            return NeedMore() if is_beginning(text[at:], part) else NoHead()
    at = _skip_blanks(text, at)
    if at == len(text):
        return NeedMore()
    return Head(name, at) if text[at] == "{" else NoHead()


def _read_quoted_name(text: str) -> Reading:
    found = _STRING.match(text)
    if found is None:
        is_open = not text or (_STRING_SO_FAR.fullmatch(text) is not None and len(text) < _MAX_QUOTED_NAME)
        return NeedMore() if is_open else NoHead()
    try:
        name: str = json.loads(found.group())
        name.encode()
    except ValueError:  # an escape that JSON does not have, or half of a character
        return NoHead()
    return Head(name, found.end()) if name else NoHead()


def read_bare_head(text: str, names: Collection[str]) -> Reading:
    """Read what `read_hermes_head` reads, in a code block or not, if the name is one of these and written plainly.

    Small models leave the marks out; without them only the name of a function that was offered tells a call from an
    answer in JSON.
    """
    at = _skip_blanks(text, 0)
    if text.startswith(FENCE, at):
        at += len(FENCE)
        if is_beginning(text[at:], _FENCE_LANGUAGE):
            return NeedMore()
        at = _skip_blanks(text, at + (len(_FENCE_LANGUAGE) if text.startswith(_FENCE_LANGUAGE, at) else 0))
    elif is_beginning(text[at:], FENCE):
        return NeedMore()
    head = read_hermes_head(text[at:])
    if not isinstance(head, Head):
        return head
    if head.name not in names:
        return NoHead()
    is_plain = re.match(rf'\{{\s*"name"\s*:\s*"{re.escape(head.name)}"', text[at:]) is not None
    return Head(head.name, at + head.length) if is_plain else NoHead()


def read_xml_head(text: str) -> Reading:
    """Read `<function=NAME>` after blanks."""
    at = _skip_blanks(text, 0)
    head = _read_tag(text[at:], "<function=")
    return Head(head.name, at + head.length) if isinstance(head, Head) else head


def read_parameter_head(text: str) -> Reading:
    """Read `<parameter=NAME>`."""
    return _read_tag(text, "<parameter=")


def _read_tag(text: str, opening: str) -> Reading:
    if not text.startswith(opening):
        return NeedMore() if is_beginning(text, opening) else NoHead()
    rest = text[len(opening) :]
    end = _TAG_NAME_END.search(rest[: MAX_NAME_CHARS + 1])
    if end is None:
        return NeedMore() if len(rest) <= MAX_NAME_CHARS else NoHead()
    name = rest[: end.start()].strip()
    return Head(name, len(opening) + end.end()) if name and end.group() == ">" else NoHead()


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


class JsonObjectScanner:
    """Finds where a JSON object ends, each character looked at once.

    Only strings and brackets count; whether the rest is JSON is for the one who reads the arguments.
    """

    def __init__(self) -> None:
        """Start before the opening bracket."""
        self.is_complete = False
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def scan(self, text: str, *, stop_at: str) -> int:
        """Go on through the text; return how much of it belongs to the object for certain.

        Args:
            text: what follows the characters accepted so far.
            stop_at: a mark that ends the object where it stands outside a string.
        """
        for at, char in enumerate(text):
            if self._is_in_string:
                self._step_in_string(char)
            elif text.startswith(stop_at, at) or (len(text) - at < len(stop_at) and stop_at.startswith(text[at:])):
                return at
            elif char == '"':
                self._is_in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_complete = True
                    return at + 1
        return len(text)

    def _step_in_string(self, char: str) -> None:
        if char == "\n":  # JSON has none inside a string, so this one was never closed
            self._is_in_string = self._is_escaped = False
        elif self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._is_in_string = False


class ToolSignatures:
    """What reading calls needs to know of the functions that a model was offered."""

    def __init__(self, text_parameters: Mapping[str, frozenset[str]]) -> None:
        """Take the names of the parameters that are text, for each function."""
        self._text_parameters = text_parameters

    @property
    def names(self) -> Collection[str]:
        """The functions."""
        return self._text_parameters.keys()

    @classmethod
    def from_tools(cls, source: str) -> ToolSignatures:
        """Read OpenAI's list of tools; what is not of its shape says nothing about any parameter."""
        try:
            tools: object = json.loads(source)
        except (ValueError, RecursionError):
            return cls({})
        functions = [_entry(tool, "function") for tool in _list(tools)]
        return cls(
            {
                str(_entry(function, "name")): frozenset(
                    name
                    for name, schema in _object(_entry(_entry(function, "parameters"), "properties")).items()
                    if is_plain_text(schema)
                )
                for function in functions
            }
        )

    def is_text(self, function: str, parameter: str) -> bool:
        """Whether a parameter is known to be text; else it is read as JSON, and as text where it is none."""
        return parameter in self._text_parameters.get(function, ())


def write_argument(text: str) -> str:
    """Write a value as JSON: as it stands where it is JSON already, else as a string."""
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


def write_string_part(text: str) -> str:
    """Write a piece of a JSON string, without quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _entry(value: object, name: str) -> object:
    return _object(value).get(name)


def _object(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
