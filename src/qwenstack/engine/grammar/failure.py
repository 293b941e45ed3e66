"""What the matcher says of a grammar that it cannot use, in the words of whoever wrote the grammar.

The matcher sees Lark, most of which is written here; places in that, and settings of its own, mean nothing to a caller.
"""

from __future__ import annotations

import re

from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.lark_source import NUM_LINES_BEFORE, is_lark
from qwenstack.engine.grammar.tool_calls import function_names

_MAX_CHARS = 300
_MAX_QUOTED = 80
_PLACE = re.compile(r"(?:at )?(\d+)\(\d+\): ")
_LISTING = re.compile(r"\n +\d+ \| .*", re.DOTALL)
_FAULT_IN_PATTERN = re.compile(
    r"regex parse error:\n(?: {4}(?P<pattern>.*)\n {4}(?P<marks> *\^+)\n)?.*?error: (?P<reason>.*)", re.DOTALL
)
_ANCHOR_IN_PATTERN = re.compile(r"lookarounds not supported yet; \w+ in regex /(?P<pattern>.*)/", re.DOTALL)
_SYNTAX = "Patterns have the syntax of Rust's `regex` crate."


def explain_failure(message: str, grammar: Grammar) -> str:
    """Return a sentence for the caller.

    Args:
        message: the matcher's, which may go on with a listing of what it was given, or a trace.
        grammar: what the caller sent.
    """
    message = _LISTING.sub("", message.strip())
    line: int | None = None
    while (found := _PLACE.match(message)) is not None:
        line = int(found[1]) if line is None else line
        message = message[found.end() :]
    return f"{_subject(grammar, line)}: {_reason(message, grammar)}"


def _subject(grammar: Grammar, line: int | None) -> str:
    match grammar.kind:
        case "json_schema":
            return "The JSON schema cannot be used"
        case "regex":
            return "The regular expression cannot be used"
        case "tools":
            names = function_names(grammar.source, grammar.required_tool)
            at = -1 if line is None else line - NUM_LINES_BEFORE - 1
            which = f"tool {names[at]!r}" if 0 <= at < len(names) else "tools"
            return f"The parameters of the {which} cannot be used"
        case "ebnf" if line is not None and is_lark(grammar.source):
            return f"The grammar cannot be used, in line {line - NUM_LINES_BEFORE}"
        case _:
            return "The grammar cannot be used"


def _reason(message: str, grammar: Grammar) -> str:
    if grammar.kind == "tools":  # whose schemas stand within one of ours
        message = message.replace("Pointer '/$defs/arguments/", "Pointer '/")
    found = _FAULT_IN_PATTERN.search(message)
    if found is not None:
        at = ""
        if found["pattern"] is not None:
            at = f" at `{found['pattern'][found['marks'].index('^') : len(found['marks'])]}`"
        return f"{_pattern(found['pattern'], grammar)} is wrong{at}: {_sentence(found['reason'])} {_SYNTAX}"
    found = _ANCHOR_IN_PATTERN.search(message)
    if found is not None:
        which = _pattern(found["pattern"], grammar)
        return (
            f"{which} has an anchor or a word boundary inside; `^` and `$` may only stand at its ends, `\\b` nowhere."
        )
    if "oneOf constraints are not supported" in message:
        return (
            "a `oneOf` has branches that are not known to exclude each other, and that only one of them fits cannot "
            "be held to. Write `anyOf` instead of `oneOf`."
        )
    if message.startswith("panic"):
        return "its compiler fails on it. Write it in another way."
    if message == "no start rule found":
        return "it has no rule `start`, where Lark begins."
    if message == "lexer error":
        return "no name, text or sign of Lark begins here, or a text is not closed."
    return _sentence(message)


def _pattern(pattern: str | None, grammar: Grammar) -> str:
    if grammar.kind == "regex":
        return "it"
    return "a pattern" if pattern is None else f"the pattern `{_shortened(pattern)}`"


def _sentence(message: str) -> str:
    """Return the first line of a message without what only the matcher's authors can use."""
    text = message.split("\n")[0].removeprefix("failed to compile JSON schema: ")
    text = re.sub(r" at line \d+ column \d+$", "", text)
    text = re.sub(r' \(at ("(?:[^"\\]|\\.)*") \(.*\)\)$', r", at \1", text)
    text = text.replace("f64", "a number")
    return text[:_MAX_CHARS].rstrip(".") + "."


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "…"
