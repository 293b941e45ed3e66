"""Takes an answer's text apart while it arrives: thinking, the answer proper, tool calls.

    undecided ──▶ thinking ──▶ opening ──▶ answer ◀──▶ call_head ──▶ call's arguments ──▶ call_tail

Where the text was cut into pieces makes no difference: a decision waits until the text it depends on is there, and what
waits is never more than a mark, the head of a call, or one argument. Nothing is an error, and nothing is lost but the
head of a call that the text's end cuts off: too little for a call, and no text that anyone should read.

- An answer that begins with the JSON of a call, in a code block or not, begins with a call even without marks: small
  models forget them. The function must be one that was offered. More such calls may follow it, but no text between.
- A mark that opens no call (`<tool_call>` before anything but the head of a call) is text of the answer.
- From its head on, a call is a call. Hermes: its arguments are the model's own words up to the end of the JSON object,
  or to the closing mark outside a JSON string. Qwen's XML: they are written as JSON here; what stands where an argument
  should and is none ends the call and is text of the answer.
- Line ends around thinking and calls belong to the marks.
- Thinking is looked for where the answer begins, as templates write it; later `<think>` is text.

This module knows text; tokens, stop strings and budgets are its callers' business.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qwenstack.core.outputs import ToolCallDelta
from qwenstack.engine.tool_call_syntax import (
    FENCE,
    JsonObjectScanner,
    NeedMore,
    NoHead,
    ToolSignatures,
    is_beginning,
    num_held_back,
    read_bare_head,
    read_hermes_head,
    read_parameter_head,
    read_xml_head,
    write_argument,
    write_string_part,
)
from qwenstack.tokenizer import ChatMarkers, Marks

_BLANKS = " \t\r\n"
_PARAMETER_CLOSE = "</parameter>"
_FUNCTION_CLOSE = "</function>"

Phase = Literal["undecided", "thinking", "answer"]
"""How an answer may begin: free to think, in the midst of thinking, or past it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some text whose part in the answer is decided."""

    kind: Literal["thinking", "answer", "call"]
    text: str = ""
    call: ToolCallDelta | None = None
    """Of the kind `call`."""
    end: int
    """Characters of the whole text up to here."""


class OutputParser:
    """One answer's text."""

    def __init__(
        self,
        markers: ChatMarkers,
        *,
        phase: Phase,
        tools: ToolSignatures | None = None,
        is_calls_only: bool = False,
    ) -> None:
        """Begin an answer.

        Args:
            markers: the model's marks; without marks of tool calls, calls are text.
            phase: where the prompt left off.
            tools: the functions that were offered; without them no call is known by its JSON alone, and an argument of
                Qwen's XML is text only where it is no JSON.
            is_calls_only: a grammar leaves no text but thinking and calls; half a mark at the end is one, too.
        """
        self._markers = markers
        self._tools = tools or ToolSignatures({})
        self._reads_bare_calls = markers.tool_format == "hermes" and bool(self._tools.names) and not is_calls_only
        self._closing = ""
        """What ends the call at hand, beside its JSON or XML."""
        self._is_bare = False
        self._is_in_block = False
        """Whether bare calls stand in a code block that is still open."""
        self._is_calls_only = is_calls_only
        self._buffer = ""
        self._position = 0
        self._pieces: list[Piece] = []
        self._trims = phase == "thinking"
        self._num_calls = 0
        self._scanner = JsonObjectScanner()
        self._function = ""
        self._num_parameters = 0
        self._value = ""
        self._is_text_value = False
        self._state: Callable[[], bool] = self._opening
        if markers.thinking is not None and phase != "answer":
            self._state = self._thinking if phase == "thinking" else self._undecided

    @property
    def may_think(self) -> bool:
        """Whether thinking could begin with the next text."""
        return self._state == self._undecided and not self._buffer.strip(_BLANKS)

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends within thinking."""
        return self._state == self._thinking

    @property
    def num_settled(self) -> int:
        """Characters whose part is decided and told."""
        return self._position - len(self._value)

    def push(self, text: str) -> list[Piece]:
        """Take the next piece of text; return what is decided now."""
        self._buffer += text
        while self._buffer and self._state():
            pass
        return self._hand_over()

    def finish(self) -> list[Piece]:
        """Return what is left when the text ends here."""
        rest = self._take(len(self._buffer))
        if self._state == self._thinking:
            self._tell("thinking", rest.rstrip("\n"))
        elif self._state == self._arguments:
            self._tell_call(rest)
        elif self._state == self._value_text:
            self._tell_call(self._unfinished_value(rest))
        elif self._state in (self._undecided, self._opening, self._answer) and not self._is_calls_only:
            self._tell("answer", rest)
        return self._hand_over()

    # Each state looks at the buffer and takes what it can decide. It returns whether it came to another state, which
    # then looks at the rest.

    def _undecided(self) -> bool:
        assert self._markers.thinking is not None
        mark = self._markers.thinking.open
        word = self._buffer.lstrip(_BLANKS)
        if word.startswith(mark):
            self._take(len(self._buffer) - len(word) + len(mark))
            self._trims = True
            self._state = self._thinking
            return True
        if is_beginning(word, mark):
            return False
        self._state = self._opening
        return True

    def _thinking(self) -> bool:
        assert self._markers.thinking is not None
        mark = self._markers.thinking.close
        self._trim_line_ends()
        before, found = self._text_before(mark)
        thought = before.rstrip("\n")
        self._tell("thinking", self._take(len(thought)))
        if found:
            self._take(len(before) - len(thought) + len(mark))
            self._trims = True
            self._state = self._opening
        return found

    def _opening(self) -> bool:
        """Decide whether a call stands here without its mark."""
        self._trim_line_ends()
        head = read_bare_head(self._buffer, self._tools.names) if self._reads_bare_calls else NoHead()
        if isinstance(head, NeedMore):
            return False
        if isinstance(head, NoHead):
            self._state = self._answer
            return True
        self._is_bare = True
        self._is_in_block |= self._buffer.lstrip(_BLANKS).startswith(FENCE)
        self._closing = FENCE if self._is_in_block else self._tool_call_marks.close
        self._take(head.length)
        self._begin_call(head.name)
        self._state = self._arguments
        return True

    def _answer(self) -> bool:
        self._trim_line_ends()
        if self._markers.tool_call is None:
            self._tell("answer", self._take(len(self._buffer)))
            return False
        before, found = self._text_before(self._markers.tool_call.open)
        self._tell("answer", self._take(len(before.rstrip("\n"))))
        if found:
            self._state = self._call_head
        return found

    def _call_head(self) -> bool:
        """Decide whether the mark opens a call; the buffer begins with the line ends before it."""
        mark = self._tool_call_marks.open
        start = self._buffer.index(mark) + len(mark)
        is_xml = self._markers.tool_format == "qwen_xml"
        head = (read_xml_head if is_xml else read_hermes_head)(self._buffer[start:])
        if isinstance(head, NeedMore):
            return False
        if isinstance(head, NoHead):
            self._tell("answer", self._take(start))
            self._state = self._answer
            return True
        self._is_bare = False
        self._closing = self._tool_call_marks.close
        self._take(start + head.length)
        self._begin_call(head.name)
        self._state = self._parameters if is_xml else self._arguments
        return True

    def _arguments(self) -> bool:
        """Hermes: pass the JSON object on as it is."""
        end = self._scanner.scan(self._buffer, stop_at=self._closing)
        self._tell_call(self._take(end))
        if self._scanner.is_complete or self._buffer.startswith(self._closing):
            self._state = self._call_tail
            return True
        return False

    def _parameters(self) -> bool:
        """Qwen's XML, between two arguments."""
        word = self._buffer.lstrip(_BLANKS)
        num_blanks = len(self._buffer) - len(word)
        head = read_parameter_head(word)
        ends = (_FUNCTION_CLOSE, self._closing)
        if isinstance(head, NeedMore) or any(is_beginning(word, end) for end in ends):
            return False
        if isinstance(head, NoHead):
            self._take(num_blanks + (len(_FUNCTION_CLOSE) if word.startswith(_FUNCTION_CLOSE) else 0))
            self._tell_call("}" if self._num_parameters else "{}")
            self._state = self._call_tail
            return True
        self._take(num_blanks + head.length)
        self._is_text_value = self._tools.is_text(self._function, head.name)
        key = json.dumps(head.name, ensure_ascii=False)
        self._tell_call((", " if self._num_parameters else "{") + key + (': "' if self._is_text_value else ": "))
        self._num_parameters += 1
        self._state = self._value_start
        return True

    def _value_start(self) -> bool:
        """Drop the one line end that templates write before a value."""
        if self._buffer.startswith("\n"):
            self._take(1)
        self._state = self._value_text
        return True

    def _value_text(self) -> bool:
        before, found = self._text_before(_PARAMETER_CLOSE)
        kept = before.removesuffix("\n")
        value = self._take(len(kept))
        if self._is_text_value:
            self._tell_call(write_string_part(value))
        else:
            self._value += value
        if found:
            self._take(len(before) - len(kept) + len(_PARAMETER_CLOSE))
            whole, self._value = self._value, ""
            self._tell_call('"' if self._is_text_value else write_argument(whole))
            self._state = self._parameters
        return found

    def _unfinished_value(self, rest: str) -> str:
        """Write a value that the answer's end cuts off: a text without its closing quote, whatever it was to become."""
        whole, self._value = self._value + rest, ""
        return ("" if self._is_text_value else '"') + write_string_part(whole)

    def _call_tail(self) -> bool:
        """Drop what closes a call; a closing mark that is missing is not missed."""
        mark = self._closing
        word = self._buffer.lstrip(_BLANKS + ("}" if self._markers.tool_format == "hermes" else ""))
        if is_beginning(word, mark):
            return False
        is_closed = word.startswith(mark)
        self._take(len(self._buffer) - len(word) + (len(mark) if is_closed else 0))
        self._is_in_block &= not is_closed
        self._trims = True
        self._num_calls += 1
        # A closing mark ends bare calls: behind it the grammar lets any text through.
        self._state = self._opening if self._is_bare and not (is_closed and mark != FENCE) else self._answer
        return True

    def _text_before(self, mark: str) -> tuple[str, bool]:
        """Return the buffer up to the mark, or up to what may become one, and whether it is there."""
        at = self._buffer.find(mark)
        if at >= 0:
            return self._buffer[:at], True
        return self._buffer[: len(self._buffer) - num_held_back(self._buffer, mark)], False

    def _trim_line_ends(self) -> None:
        if self._trims:
            self._take(len(self._buffer) - len(self._buffer.lstrip("\n")))
            self._trims = not self._buffer

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        self._position += count
        return taken

    def _tell(self, kind: Literal["thinking", "answer"], text: str) -> None:
        if text:
            self._pieces.append(Piece(kind=kind, text=text, end=self._position))

    @property
    def _tool_call_marks(self) -> Marks:
        assert self._markers.tool_call is not None
        return self._markers.tool_call

    def _begin_call(self, name: str) -> None:
        self._pieces.append(Piece(kind="call", call=self._call_delta("", name=name), end=self._position))
        self._function, self._num_parameters = name, 0
        self._scanner = JsonObjectScanner()

    def _tell_call(self, arguments: str) -> None:
        """Add to the arguments, in one delta with what this push has of the call already."""
        if not arguments:
            return
        delta = self._call_delta(arguments)
        last = self._pieces[-1].call if self._pieces else None
        if last is not None and last.index == delta.index:
            delta = self._call_delta(last.arguments + arguments, name=last.name)
            self._pieces.pop()
        self._pieces.append(Piece(kind="call", call=delta, end=self._position))

    def _call_delta(self, arguments: str, *, name: str | None = None) -> ToolCallDelta:
        return ToolCallDelta(index=self._num_calls, name=name, arguments=arguments)

    def _hand_over(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces
