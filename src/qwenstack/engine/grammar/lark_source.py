"""A caller's grammar, of whatever kind, as the matcher's one notation: Lark."""

from __future__ import annotations

import json
import re

from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.gbnf import gbnf_lark
from qwenstack.engine.grammar.json_schema import check_schema, parse_json, schema_lark
from qwenstack.engine.grammar.limits import MAX_CHOICES
from qwenstack.engine.grammar.python_syntax import python_lark
from qwenstack.engine.grammar.refusal import GrammarRefusal
from qwenstack.engine.grammar.tool_calls import tools_lark
from qwenstack.tokenizer import ToolFormat

_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""The model chooses how a text is cut into tokens; for a cut of its own the matcher would need the tokenizer."""
NUM_LINES_BEFORE = _OPTIONS.count("\n")
"""Lines that stand before what a caller wrote in Lark."""
_EMPTY_OPTIONS = re.compile(r"^\s*%llguidance\s*\{\s*\}", re.MULTILINE)
_RULE_OPTIONS = re.compile(
    r"^\s*[A-Za-z_][\w-]*\s*\[[^\]\n]*\b(stop|max_tokens|temperature|stop_capture)\b", re.MULTILINE
)


def lark_of(grammar: Grammar, tool_format: ToolFormat = "hermes") -> str:
    """Translate a grammar.

    Args:
        grammar: what the caller sent.
        tool_format: how the model writes calls of tools.

    Raises:
        GrammarRefusal: it is not well formed, too large, or cannot be expressed.
    """
    return _OPTIONS + _rules_of(grammar, tool_format)


def is_lark(source: str) -> bool:
    """Whether a grammar of the kind `ebnf` is Lark, not GBNF."""
    return "::=" not in source


def _rules_of(grammar: Grammar, tool_format: ToolFormat) -> str:
    source = grammar.source
    match grammar.kind:
        case "json_schema":
            return f"start: {schema_lark(check_schema(parse_json(source, 'The JSON schema')))}\n"
        case "json_object":
            return f"start: {schema_lark({'type': 'object'})}\n"
        case "regex":
            return f"start: PATTERN\nPATTERN: /{_lark_regex(source)}/\n"
        case "ebnf":
            return _checked_lark(source) if is_lark(source) else gbnf_lark(source)
        case "choice":
            return _choice_lark(source)
        case "python":
            return python_lark()
        case "tools":
            return tools_lark(
                source, grammar.required_tool, tool_format, parallel_tool_calls=grammar.parallel_tool_calls
            )


def _lark_regex(pattern: str) -> str:
    """Return a pattern for Lark's slashes; the whole text has to match, so anchors at its ends say nothing."""
    if not pattern:
        raise GrammarRefusal("The pattern is empty; it must match the text of the answer.")
    pattern = pattern.removeprefix("^")
    if re.search(r"(?<!\\)(\\\\)*\$$", pattern):
        pattern = pattern[:-1]
    written = {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}
    return re.sub(r"\\.|/|\n", lambda match: written.get(match[0], match[0]), pattern, flags=re.DOTALL)


def _choice_lark(source: str) -> str:
    choices = parse_json(source, "The list of choices")
    if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
        raise GrammarRefusal(f"`choice` must be a list of 1 to {MAX_CHOICES} texts.")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise GrammarRefusal(f"A choice is {json.dumps(choice)[:60]}; each must be a text that is not empty.")
    patterns = [
        "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in str(choice))
        for choice in choices
    ]
    return f"start: CHOICE\nCHOICE: /{'|'.join(patterns)}/\n"


def _checked_lark(source: str) -> str:
    """Return a caller's own Lark, if it asks for nothing that the engine does not do."""
    source = _EMPTY_OPTIONS.sub(lambda found: "\n" * found[0].count("\n"), source)  # lines keep their numbers
    if "%llguidance" in source:
        raise GrammarRefusal("The grammar sets options with `%llguidance`, which only the engine may; leave them out.")
    option = _RULE_OPTIONS.search(source)
    if option is not None:
        raise GrammarRefusal(f"The grammar uses the rule option `{option[1]}`, which is not supported; leave it out.")
    return source
