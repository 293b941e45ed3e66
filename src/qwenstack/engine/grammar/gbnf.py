r"""llama.cpp's grammar notation (GBNF), read and written as Lark.

    root  ::= "[" (item ("," item)*)? "]"
    item  ::= [0-9]{1,3} | root          # a comment

What does not recurse becomes one token, a regular expression; the rest stays a rule. Neighbours that do not recurse are
joined into one token first, because the matcher's lexer takes the longest match: `[a-z]+ "b"` as two tokens would match
nothing, as one it is exact.

Source of the notation: llama.cpp, grammars/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwenstack.engine.grammar.limits import MAX_REPEAT
from qwenstack.engine.grammar.refusal import GrammarRefusal

_MAX_NESTING = 64
"""Of parentheses; the parser recurses."""
_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\#[^\n]*)|(?P<line>\r?\n)
    |(?P<define>[A-Za-z][A-Za-z0-9_-]*[ \t]*::=)|(?P<name>[A-Za-z][A-Za-z0-9_-]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<set>\[(?:[^\]\\\n]|\\.)*\])|(?P<repeat>[*+?]|\{[ ]*\d+[ ]*(?:,[ ]*\d*[ ]*)?\})
    |(?P<sign>[()|.])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([nrt\"\\\[\]\-^]))", re.DOTALL)
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t"}
_CODE_POINTS = 0x110000


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Characters, as a regular expression."""

    regex: str


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Node
    range: str


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    parts: tuple[_Node, ...]


_Node = _Pattern | _Reference | _Repeat | _Sequence | _Choice


def gbnf_lark(source: str) -> str:
    """Translate a grammar whose start rule is `root`.

    Raises:
        GrammarRefusal: it is not GBNF, or a rule is missing or there twice.
    """
    rules = _Reader(source).read()
    if "root" not in rules:
        raise GrammarRefusal("The grammar has no rule `root`, where GBNF starts.")
    return _Writer(rules).write()


class _Reader:
    """Reads rules by recursive descent."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = _tokens(source)
        self._place = 0
        self._depth = 0

    def read(self) -> dict[str, _Node]:
        rules: dict[str, _Node] = {}
        self._skip_lines()
        while self._kind() != "end":
            if self._kind() != "define":
                raise self._refuse("a rule such as `name ::=`")
            name = self._take().removesuffix("::=").rstrip(" \t")
            if name in rules:
                raise GrammarRefusal(f"The grammar has the rule `{name}` twice.")
            self._skip_lines()
            rules[name] = self._choice()
            if self._kind() not in {"line", "end", "define"}:
                raise self._refuse("the end of the rule")
            self._skip_lines()
        return rules

    def _choice(self) -> _Node:
        parts = [self._sequence()]
        while self._text() == "|":
            self._take()
            self._skip_lines()
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._kind() in {"name", "text", "set"} or self._text() in {"(", "."} or self._is_inner_line():
            if self._kind() == "line":
                self._skip_lines()
                continue
            part = self._part()
            while self._kind() == "repeat":
                part = _Repeat(part, _range(self._take()))
            parts.append(part)
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _part(self) -> _Node:
        kind, text = self._kind(), self._take()
        if kind == "name":
            return _Reference(text)
        if kind == "text":
            return _Pattern("".join(map(_regex_of, _characters(text[1:-1]))))
        if kind == "set":
            return _Pattern(_set_regex(text[1:-1]))
        if text == ".":
            return _Pattern(r"(?s:.)")
        self._depth += 1
        if self._depth > _MAX_NESTING:
            raise GrammarRefusal(f"The grammar has more than {_MAX_NESTING} parentheses inside each other.")
        self._skip_lines()
        inner = self._choice()
        self._skip_lines()
        if self._text() != ")":
            raise self._refuse("`)`")
        self._take()
        self._depth -= 1
        return inner

    def _is_inner_line(self) -> bool:
        return self._kind() == "line" and self._depth > 0

    def _kind(self) -> str:
        return self._tokens[self._place][0]

    def _text(self) -> str:
        return self._tokens[self._place][1]

    def _take(self) -> str:
        text = self._text()
        self._place += 1
        return text

    def _skip_lines(self) -> None:
        while self._kind() == "line":
            self._place += 1

    def _refuse(self, expected: str) -> GrammarRefusal:
        kind, text, offset = self._tokens[self._place]
        found = "its end" if kind == "end" else repr(text)
        line = self._source.count("\n", 0, offset) + 1
        return GrammarRefusal(f"The grammar has {found} in line {line}, where {expected} must stand.")


def _tokens(source: str) -> list[tuple[str, str, int]]:
    tokens: list[tuple[str, str, int]] = []
    place = 0
    while place < len(source):
        match = _TOKEN.match(source, place)
        if match is None or match.lastgroup is None:
            line = source.count("\n", 0, place) + 1
            raise GrammarRefusal(f"The grammar has {source[place : place + 20]!r} in line {line}, which is not GBNF.")
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match.group(), place))
        place = match.end()
    return [*tokens, ("end", "", len(source))]


def _range(text: str) -> str:
    """Return a repetition in Lark's form."""
    if text in {"*", "+", "?"}:
        return text
    low, _, high = text[1:-1].replace(" ", "").partition(",")
    if max(int(low), int(high or 0)) > MAX_REPEAT:
        raise GrammarRefusal(f"The grammar repeats something {text} times; at most {MAX_REPEAT} are taken.")
    return "{" + (low if "," not in text else f"{low},{high}") + "}"


def _characters(text: str) -> list[str]:
    """Return the characters of a literal or set, escapes undone."""
    characters: list[str] = []
    place = 0
    while place < len(text):
        if text[place] != "\\":
            characters.append(text[place])
            place += 1
            continue
        match = _ESCAPE.match(text, place)
        if match is None:
            raise GrammarRefusal(f"The grammar has the escape {text[place : place + 2]!r}, which GBNF does not know.")
        code = next((digits for digits in match.groups()[:3] if digits), None)
        if code is None:
            characters.append(_SIMPLE.get(match[4], match[4]))
        elif int(code, 16) >= _CODE_POINTS or 0xD800 <= int(code, 16) < 0xE000:
            raise GrammarRefusal(f"The grammar has the escape {match[0]!r}, which is no character.")
        else:
            characters.append(chr(int(code, 16)))
        place = match.end()
    return characters


def _set_regex(text: str) -> str:
    """Return a character set; a `-` between two characters makes a range."""
    negated = text.startswith("^")
    body = text[1:] if negated else text
    if not body:
        raise GrammarRefusal(f"The grammar has the empty set `[{text}]`.")
    # An escaped `-` is a character, never a range, so ranges are looked for before escapes are undone.
    parts: list[str] = []
    pieces = re.findall(r"\\x..|\\u.{4}|\\U.{8}|\\.|[^\\]", body, re.DOTALL)
    place = 0
    while place < len(pieces):
        low = _characters(pieces[place])[0]
        if place + 2 < len(pieces) and pieces[place + 1] == "-":
            high = _characters(pieces[place + 2])[0]
            if high < low:
                raise GrammarRefusal(f"The grammar has the range `{low}-{high}`, which is empty.")
            parts.append(f"{_regex_of(low)}-{_regex_of(high)}")
            place += 3
        else:
            parts.append(_regex_of(low))
            place += 1
    return f"[{'^' if negated else ''}{''.join(parts)}]"


def _regex_of(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


class _Writer:
    """Writes rules, tokens in capitals."""

    def __init__(self, rules: dict[str, _Node]) -> None:
        self._rules = rules
        self._recursive = _recursive_rules(rules)
        self._names = {
            name: f"rule_{index}" if name in self._recursive else f"TOKEN_{index}" for index, name in enumerate(rules)
        }
        self._joined_tokens: list[str] = []

    def write(self) -> str:
        lines = [f"start: {self._names['root']}"]
        for name, node in self._rules.items():
            write = self._rule if name in self._recursive else self._token
            lines.append(f"{self._names[name]}: {write(node)}")
        return "\n".join([*lines, *self._joined_tokens]) + "\n"

    def _token(self, node: _Node) -> str:
        match node:
            case _Pattern(regex):
                return f"/{regex}/" if regex else '""'
            case _Reference(name):
                return self._names[name]
            case _Repeat(part, range_):
                return f"({self._token(part)}){range_}"
            case _Sequence(parts):
                return " ".join(f"({self._token(part)})" for part in parts) or '""'
            case _Choice(parts):
                return " | ".join(f"({self._token(part)})" for part in parts)

    def _rule(self, node: _Node) -> str:
        match node:
            case _Pattern():
                return self._join([node])
            case _Reference(name):
                return self._names[name]
            case _Repeat(part, range_) if self._recurs(part):
                return f"({self._rule(part)}){range_}"
            case _Repeat():
                return self._join([node])
            case _Sequence(parts):
                return " ".join(self._runs(parts)) or '""'
            case _Choice(parts):
                return " | ".join(f"({self._rule(part)})" for part in parts)

    def _runs(self, parts: Sequence[_Node]) -> list[str]:
        """Write a sequence, neighbours that do not recurse as one token."""
        written: list[str] = []
        run: list[_Node] = []
        for part in parts:
            if not self._recurs(part):
                run.append(part)
                continue
            if run:
                written.append(self._join(run))
                run = []
            written.append(f"({self._rule(part)})")
        return [*written, self._join(run)] if run else written

    def _join(self, parts: Sequence[_Node]) -> str:
        name = f"PART_{len(self._joined_tokens)}"
        self._joined_tokens.append(f"{name}: {self._token(_Sequence(tuple(parts)))}")
        return name

    def _recurs(self, node: _Node) -> bool:
        return any(name in self._recursive for name in _references(node))


def _recursive_rules(rules: dict[str, _Node]) -> frozenset[str]:
    """Return the rules from which a cycle can be reached: those that cannot be one regular expression."""
    needs = {name: set(_references(node)) for name, node in rules.items()}
    for name in {reference for references in needs.values() for reference in references}:
        if name not in rules:
            raise GrammarRefusal(f"The grammar uses the rule `{name}`, which it does not have.")
    recursive = dict(needs)
    while True:
        # Taking away rule by rule what only needs rules already taken leaves those that reach a cycle.
        flat = [name for name, references in recursive.items() if not any(one in recursive for one in references)]
        if not flat:
            return frozenset(recursive)
        for name in flat:
            del recursive[name]


def _references(node: _Node) -> Iterator[str]:
    match node:
        case _Pattern():
            return
        case _Reference(name):
            yield name
        case _Repeat(part):
            yield from _references(part)
        case _Sequence(parts) | _Choice(parts):
            for part in parts:
                yield from _references(part)
