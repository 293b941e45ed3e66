"""Keep a user's `<|im_end|>` from becoming a control token, without changing what the model reads.

Before a template is rendered, each literal added token in the caller's texts is broken by a mark, a character that
occurs nowhere else. What is whole after rendering was written by the template, and becomes a control token; then the
mark is taken out, and the rest is plain text again.

Where a template decides by such literals the mark shows: Qwen3's treats a user message that is all
`<tool_response>…</tool_response>` as a tool's result, and with the mark does not, which is what a user may ask for.
A template that itself writes both ends of a control token around a caller's text is its author.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from qwenstack.core.errors import RequestError
from qwenstack.tokenizer.vocabulary import AddedToken

# Noncharacters first: no honest text has them. Then private use, for texts that have them all the same.
_MARKS = tuple(map(chr, [*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900)]))

_OWN_WORDS = ("content", "reasoning_content")
"""Fields of an assistant's message that the model wrote itself, `<think>` and `<tool_call>` included."""


class LiteralGuard:
    """Marks one vocabulary's added tokens in conversations."""

    def __init__(self, added_tokens: Iterable[AddedToken]) -> None:
        """Prepare the patterns."""
        tokens = list(added_tokens)
        self._any = _LiteralPattern([token.text for token in tokens])
        self._control = _LiteralPattern([token.text for token in tokens if token.is_control])

    def mark(self, variables: Mapping[str, object], *, template: str) -> tuple[dict[str, object], str]:
        """Return a conversation's variables with every literal broken, and the mark that breaks them.

        Texts of the assistant keep `<think>` and `<tool_call>`, which were the model's own words and which templates
        look for; `<|im_end|>` and its kind are broken there too.

        Raises:
            RequestError: the texts use every character that could be the mark.
        """
        mark = _choose_mark([template, *_texts(variables)])
        marked = {name: self._walk(value, self._any, mark) for name, value in variables.items() if name != "messages"}
        messages = cast("list[dict[str, object]]", variables["messages"])
        marked["messages"] = [self._mark_message(message, mark) for message in messages]
        return marked, mark

    def _mark_message(self, message: dict[str, object], mark: str) -> dict[str, object]:
        own_words = _OWN_WORDS if message["role"] == "assistant" else ()
        return {
            name: self._walk(value, self._control if name in own_words else self._any, mark)
            for name, value in message.items()
        }

    def _walk(self, value: object, pattern: _LiteralPattern, mark: str) -> object:
        if isinstance(value, str):
            return pattern.break_up(value, mark)
        if isinstance(value, dict):
            entries = cast("dict[str, object]", value)
            return {pattern.break_up(key, mark): self._walk(item, pattern, mark) for key, item in entries.items()}
        if isinstance(value, list):
            return [self._walk(item, pattern, mark) for item in cast("list[object]", value)]
        return value


class _LiteralPattern:
    """Finds literals in a text, and pieces of literals at its ends that the template's text could complete."""

    def __init__(self, literals: list[str]) -> None:
        # Upper and lower case alike, for templates that change it. Each first letter is looked at on its own, so that
        # literals that overlap are all found.
        self._whole = _pattern(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in literals)
        starts = {text[:length] for text in literals for length in range(1, len(text))}
        self._start = _pattern(rf"{re.escape(text[0])}(?={re.escape(text[1:])}\Z)" for text in starts)
        ends = {text[-length:] for text in literals for length in range(1, len(text))}
        self._end = _pattern(map(re.escape, ends))
        self._longest = max(map(len, literals), default=0)

    def break_up(self, text: str, mark: str) -> str:
        """Put the mark into every literal of the text, and where a piece of one begins or ends it."""
        text = self._whole.sub(rf"\g<0>{mark}", text)
        # Templates strip white space, so the ends are those of the stripped text.
        first, last = len(text) - len(text.lstrip()), len(text.rstrip())
        tail = max(first, last - self._longest)
        if self._start.search(text, tail, last):
            text = text[:tail] + self._start.sub(rf"\g<0>{mark}", text[tail:last]) + text[last:]
        if self._end.match(text, first):
            text = text[:first] + mark + text[first:]
        return text


def unmark(text: str, mark: str) -> str:
    """Take the mark out, also where a template wrote it as a JSON escape."""
    return text.replace(mark, "").replace(_json_escape(mark), "")


def _json_escape(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def _choose_mark(texts: list[str]) -> str:
    for mark in _MARKS:
        escape = _json_escape(mark)
        if not any(mark in text or escape in text for text in texts):
            return mark
    raise RequestError(
        "`messages` use all of Unicode's noncharacters and private-use characters; leave some out.", param="messages"
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _texts(item)


def _pattern(alternatives: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(alternatives, key=len, reverse=True)
    return re.compile("|".join(longest_first) or "(?!)", re.IGNORECASE)
