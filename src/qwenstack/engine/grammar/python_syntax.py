r"""Python's syntax as a Lark grammar, such that every text it accepts passes `ast.parse` on Python 3.11 and newer.

It is a subset: blocks are indented by four spaces, names are ASCII, there is no `match` statement and no tab between
tokens, and nesting is bounded, as Python's own parser bounds it. What the compiler checks later (`return` outside a
function) is not looked at.

Two things shape the grammar:

- *Space is part of the tokens.* An operator takes the spaces around it with it, so that indentation, which is space
  too, cannot be mistaken for them. Inside brackets newlines and comments count as space, in f-strings' braces spaces.
  So expressions are written three times, by one function, once for each meaning of space.
- *The lexer takes the longest match and never backs up.* A token must not be able to run on into something that is no
  token: `is` and `not` are two tokens, for one token `is not` would refuse `x is nothing`.

Repetition is bounded wherever it deepens the syntax tree: `ast.parse` gives up on very deep ones.

    start ── statement of level k ── suite ── statements of level k + 1
                 └── expression (line) ── expression (bracket 1) ── … ── expression (bracket 12)
                                     └─── f-string ── expression (braces)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from keyword import kwlist

MAX_INDENTATION = 10
"""Levels of blocks; CPython 3.11 to 3.14 allow 99. In the standard library of 3.11 no block is deeper than 10."""
MAX_BRACKETS = 12
"""Levels of brackets in an expression; CPython's tokenizer allows 200, its parser's stack fewer."""
_MAX_CHAIN = 100
"""Operators or trailers in a row on one level: each deepens the tree by one, and `ast.parse` allows about 3,000."""
_MAX_DIGITS = 200
"""In a number; `int` refuses to read more than 4,300."""
_F_STRING_BRACKETS = 3
"""Levels of brackets inside an f-string's braces."""

_CONTROL = r"\x00-\x08\x0b-\x1f\x7f"
"""A program must not hold a zero byte, a carriage return changes its lines, the others are noise. Tab is allowed."""
_COMMENT = rf"#[^\n{_CONTROL}]*"
_NAME = "[A-Za-z_][A-Za-z0-9_]*"
"""In ASCII: names in other letters would make a third of the vocabulary possible at each expression's start."""
_ESCAPE = r"\\([\n\\'\x22abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U000[0-9a-fA-F]{5}|[0-7]{1,2}|[0-3][0-7]{2})"
_BYTE_ESCAPE = r"\\([\n\\'\x22abfnrtv]|x[0-9a-fA-F]{2}|[0-7]{1,2}|[0-3][0-7]{2})"
_ASCII = r"\x09\x20-\x7e"


@dataclass(frozen=True, slots=True)
class _Space:
    """What counts as space between two tokens, as a regular expression for one piece of it."""

    name: str
    piece: str

    @property
    def any(self) -> str:
        return f"({self.piece})*"

    @property
    def some(self) -> str:
        return f"({self.piece})+"


_LINE = _Space("L", r" |\\\n")
_BRACKET = _Space("B", rf"[ \n]|{_COMMENT}\n")
_BRACES = _Space("F", " ")


@cache
def python_lark() -> str:
    """Return the grammar; its start rule is `start`."""
    return "\n".join([*_terminals(), *_f_strings(), *_expressions(), *_statements()]) + "\n"


# --- tokens


def _terminals() -> Iterator[str]:
    yield f"NAME: /{_NAME}/ & ~/{'|'.join(kwlist)}/"
    yield 'CONSTANT: "None" | "True" | "False" | "..."'
    yield f"NUMBER: /{_number()}/"
    yield f"STRING: /{_string(_ESCAPE, '', '[uU]?', '[rR]')}/"
    yield f"BYTES: /{_string(_BYTE_ESCAPE, _ASCII, '[bB]', '([bB][rR]|[rR][bB])')}/"
    for space in (_LINE, _BRACKET, _BRACES):
        yield from _spaced_terminals(space)
    yield rf"END_OF_LINE: / *;? *({_COMMENT})?\n/"
    yield rf"END_OF_TEXT: /( *;)? *({_COMMENT})?/"
    yield rf"BLANK: / *({_COMMENT})?\n/"
    yield rf"LAST_COMMENT: / *{_COMMENT}| +/"
    yield rf"COLON_AND_LINE: / *: *({_COMMENT})?\n/"
    yield "SEMICOLON: / *; */"
    yield r"ARROW: /( |\\\n)*->( |\\\n)*/"
    yield r"ASSIGN_WITH: /( |\\\n)*(\+|-|\*|\*\*|\/|\/\/|%|@|&|\||\^|<<|>>)=( |\\\n)*/"
    for level in range(1, MAX_INDENTATION + 1):
        yield f"INDENT_{level}: /{' ' * (4 * level)}/"


def _number() -> str:
    digits = rf"[0-9](_?[0-9]){{0,{_MAX_DIGITS}}}"
    exponent = r"[eE][-+]?[0-9](_?[0-9]){0,4}"
    real = rf"({digits}\.({digits})?|\.{digits})({exponent})?|{digits}{exponent}"
    whole = rf"0(_?0){{0,{_MAX_DIGITS}}}|[1-9](_?[0-9]){{0,{_MAX_DIGITS}}}"
    some = f"{{1,{_MAX_DIGITS}}}"
    based = rf"0[xX](_?[0-9a-fA-F]){some}|0[oO](_?[0-7]){some}|0[bB](_?[01]){some}"
    return f"{based}|{whole}|{real}|({real}|{digits})[jJ]"


def _string(escape: str, alphabet: str, prefix: str, raw_prefix: str) -> str:
    """Return the four quotings, with and without escapes; `alphabet` limits the characters, empty means all."""
    raw = rf"\\[\n{alphabet}]" if alphabet else rf"\\[^{_CONTROL}]"
    forms = [
        f"{start}{quoting}"
        for start, escaped in ((prefix, escape), (raw_prefix, raw))
        for quote in (r"\x22", "'")
        for quoting in _quotings(quote, escaped, alphabet)
    ]
    return "|".join(forms)


def _quotings(quote: str, escape: str, alphabet: str) -> tuple[str, str]:
    def characters(excluded: str) -> str:
        if alphabet:
            allowed = r"\x09\x20\x21\x23-\x26\x28-\x5b\x5d-\x7e" + ("'" if quote != "'" else r"\x22")
            return f"[{allowed}]" if "n" in excluded else rf"[{allowed}\n]"
        return f"[^{quote}\\\\{_CONTROL}{excluded}]"

    one_line = f"{quote}({characters(chr(92) + 'n')}|{escape})*{quote}"
    many_lines = f"{quote}{{3}}(({quote}{{1,2}})?({characters('')}|{escape}))*{quote}{{3}}"
    return one_line, many_lines


def _spaced_terminals(space: _Space) -> Iterator[str]:
    name, gap, some = space.name, space.any, space.some
    # A backslash joins lines, but no comment may follow it; around an operator none can.
    joined = "" if space is _BRACES else r"(\\\n *)*"
    yield f"{name}_SPACE: /{some}/"
    yield rf"{name}_DOT: /{gap}\.{gap}/"
    yield f"{name}_COMMA: /{gap},{gap}/"
    yield f"{name}_COLON: /{gap}:{gap}/"
    yield f"{name}_WALRUS: /{gap}:={gap}/"
    yield f"{name}_ASSIGN: /{gap}={gap}/"
    yield f"{name}_SIGN: /([-+~]{gap}){{1,3}}/"
    yield f"{name}_AND_OR: /{some}{joined}(and|or){some}{joined}/"
    yield rf"{name}_STAR: /\*{gap}/"
    yield rf"{name}_DOUBLE_STAR: /\*\*{gap}/"
    arithmetic = r"\+|-|\*|\*\*|\/|\/\/|%|@|&|\||\^|<<|>>"
    yield f"{name}_OPERATOR: /{gap}{joined}({arithmetic}){gap}{joined}/"
    comparison = rf"{gap}{joined}(==|!=|<|>|<=|>=){gap}{joined}"
    yield f"{name}_COMPARE: /{comparison}|{some}{joined}(in|not{some}in){some}{joined}/"
    yield f"{name}_IS: /{some}{joined}is{some}{joined}/"
    for keyword in ("if", "else", "in", "as", "from"):
        yield f"{name}_{keyword.upper()}: /{some}{joined}{keyword}{some}{joined}/"
    yield f"{name}_ASYNC_FOR: /{some}async{some}for{some}/"
    # The space before `for` is a token of its own: `"a" f"b"` must not be taken for the beginning of a ` for`.
    yield f"{name}_FOR: /for{some}/"
    # A name may stand where these do, so that the longest match keeps them apart from names that begin like them.
    for keyword in ("not", "await", "from", "lambda", "yield"):
        yield f"{name}_PREFIX_{keyword.upper()}: /{keyword}{gap}/"
    inner = _BRACES if space is _BRACES else _BRACKET
    for bracket, opening, closing in (("PAREN", r"\(", r"\)"), ("SQUARE", r"\[", r"\]"), ("BRACE", r"\{", r"\}")):
        yield f"{name}_OPEN_{bracket}: /{opening}{inner.any}/"
        yield f"{name}_THEN_{bracket}: /{gap}{opening}{inner.any}/"
        yield f"{name}_CLOSE_{bracket}: /{gap}{closing}/"


# --- expressions


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an expression stands: its rules' suffix, its space, and the place inside its brackets, if any may come."""

    suffix: str
    space: _Space
    inside: str | None
    strings: str
    """The rule for text literals."""
    is_in_braces: bool = False
    """Inside an f-string: no braces, no `lambda`, `yield` or `:=`, no `:` outside brackets."""


def _expressions() -> Iterator[str]:
    yield from _expression_rules(_Place("l", _LINE, "b1", "text_l"))
    for level in range(1, MAX_BRACKETS + 1):
        inside = f"b{level + 1}" if level < MAX_BRACKETS else None
        yield from _expression_rules(_Place(f"b{level}", _BRACKET, inside, "text_b"))
    for quote in "ds":
        for level in range(_F_STRING_BRACKETS + 1):
            inside = f"f{quote}{level + 1}" if level < _F_STRING_BRACKETS else None
            strings = f"PLAIN_{'S' if quote == 'd' else 'D'}"
            yield from _expression_rules(_Place(f"f{quote}{level}", _BRACES, inside, strings, is_in_braces=True))
    for suffix, name in (("l", "L"), ("b", "B")):
        yield f"text_{suffix}: piece ({name}_SPACE piece)* | BYTES ({name}_SPACE BYTES)*"
    yield "piece: STRING | f_string"


def _expression_rules(place: _Place) -> Iterator[str]:
    """Write one place's rules; what precedence changes in the tree alone is left out."""
    at, sp = place.suffix, place.space.name
    operand, negated = f"operand_{at}", f"negated_{at}"
    binary = f"({sp}_OPERATOR | {sp}_COMPARE | {sp}_IS {sp}_PREFIX_NOT?) {operand} | {sp}_AND_OR {negated}"
    lambdas = "" if place.is_in_braces else f"lambda_{at}{{0,2}} "
    yield f"expression_{at}: {lambdas}{negated} ({binary} | {sp}_IF either_{at} {sp}_ELSE {negated}){{0,{_MAX_CHAIN}}}"
    yield f"either_{at}: {negated} ({binary}){{0,{_MAX_CHAIN}}}"
    yield f"{negated}: {sp}_PREFIX_NOT{{0,3}} {operand}"
    yield f"operation_{at}: {operand} ({sp}_OPERATOR {operand}){{0,{_MAX_CHAIN}}}"
    yield f"{operand}: {sp}_SIGN? ({sp}_PREFIX_AWAIT? primary_{at} | NUMBER)"
    trailers = f"{sp}_DOT NAME"
    atoms = f"NAME | CONSTANT | {place.strings}"
    if place.inside is not None:
        trailers += f" | {sp}_THEN_PAREN arguments_{place.inside}? {_close(place, 'PAREN')} | subscript_{at}"
        atoms += f" | display_{at}"
        yield f"subscript_{at}: {sp}_THEN_SQUARE slices_{place.inside} {_close(place, 'SQUARE')}"
        yield from _display_rules(place)
    yield f"primary_{at}: ({atoms}) ({trailers}){{0,{_MAX_CHAIN}}}"
    yield from _target_rules(place)
    if not place.is_in_braces:
        yield f"lambda_{at}: {sp}_PREFIX_LAMBDA lambda_parameters_{at}? {sp}_COLON"
        yield from _parameters(at, sp, prefix="lambda_", parameter="NAME", starred="NAME")
        yield f"items_{at}: item_{at} ({sp}_COMMA item_{at})* {sp}_COMMA?"
        yield f"item_{at}: expression_{at} | {sp}_STAR operation_{at}"
        yield f"yielded_{at}: {sp}_PREFIX_YIELD ({sp}_PREFIX_FROM expression_{at} | items_{at})?"
    if place.space is not _LINE:
        yield from _inner_rules(place)


def _close(place: _Place, bracket: str) -> str:
    return f"{'F' if place.is_in_braces else 'B'}_CLOSE_{bracket}"


def _display_rules(place: _Place) -> Iterator[str]:
    at, sp, inside = place.suffix, place.space.name, place.inside
    if place.is_in_braces:
        yield (
            f"display_{at}: {sp}_OPEN_PAREN tuple_{inside}? {sp}_CLOSE_PAREN"
            f" | {sp}_OPEN_SQUARE group_{inside}? {sp}_CLOSE_SQUARE"
        )
        return
    yield (
        f"display_{at}: {sp}_OPEN_PAREN (tuple_{inside} | yielded_{inside})? B_CLOSE_PAREN"
        f" | {sp}_OPEN_SQUARE group_{inside}? B_CLOSE_SQUARE"
        f" | {sp}_OPEN_BRACE (group_{inside} | entries_{inside})? B_CLOSE_BRACE"
    )


def _inner_rules(place: _Place) -> Iterator[str]:
    """Write what stands directly inside brackets of this place: arguments, slices, comprehensions."""
    at, sp = place.suffix, place.space.name
    walrus = "" if place.is_in_braces else f"(NAME {sp}_WALRUS)? "
    yield f"named_{at}: {walrus}expression_{at}"
    yield f"condition_{at}: {walrus}either_{at}"
    yield f"loops_{at}: loop_{at}{{1,5}}"
    loop = f"({sp}_SPACE {sp}_FOR | {sp}_ASYNC_FOR) targets_{at} {sp}_IN either_{at}"
    yield f"loop_{at}: {loop} ({sp}_IF condition_{at}){{0,5}}"
    several = f"member_{at} {sp}_COMMA (member_{at} ({sp}_COMMA member_{at})* {sp}_COMMA?)?"
    yield f"tuple_{at}: named_{at} loops_{at}? | {several}"
    yield f"member_{at}: named_{at} | {sp}_STAR operation_{at}"
    yield f"group_{at}: member_{at} ({sp}_COMMA member_{at})* {sp}_COMMA? | named_{at} loops_{at}"
    if not place.is_in_braces:
        yield f"entry_{at}: expression_{at} {sp}_COLON expression_{at}"
        yield f"part_{at}: entry_{at} | {sp}_DOUBLE_STAR operation_{at}"
        yield f"entries_{at}: part_{at} ({sp}_COMMA part_{at})* {sp}_COMMA? | entry_{at} loops_{at}"
    star = f"{sp}_STAR expression_{at}"
    positional = f"(named_{at} | {star})"
    keyword = f"NAME {sp}_ASSIGN expression_{at}"
    mapping = f"{sp}_DOUBLE_STAR expression_{at}"
    yield f"keywords_{at}: {keyword} ({sp}_COMMA ({keyword} | {star}))*"
    yield f"mappings_{at}: {mapping} ({sp}_COMMA ({keyword} | {mapping}))*"
    tail = f"({sp}_COMMA keywords_{at})? ({sp}_COMMA mappings_{at})? {sp}_COMMA?"
    yield (
        f"arguments_{at}: {positional} ({sp}_COMMA {positional})* {tail}"
        f" | keywords_{at} ({sp}_COMMA mappings_{at})? {sp}_COMMA? | mappings_{at} {sp}_COMMA? | named_{at} loops_{at}"
    )
    yield f"slices_{at}: slice_{at} ({sp}_COMMA slice_{at})* {sp}_COMMA?"
    optional = f"expression_{at}?"
    yield f"slice_{at}: expression_{at} | {optional} {sp}_COLON {optional} ({sp}_COLON {optional})?"


def _target_rules(place: _Place) -> Iterator[str]:
    """Write what may be assigned to."""
    at, sp, inside = place.suffix, place.space.name, place.inside
    if inside is None:
        yield f"single_target_{at}: NAME | primary_{at} {sp}_DOT NAME"
        yield f"target_{at}: single_target_{at}"
    else:
        yield f"single_target_{at}: NAME | primary_{at} ({sp}_DOT NAME | subscript_{at})"
        yield (
            f"target_{at}: single_target_{at} | {sp}_OPEN_PAREN targets_{inside} {_close(place, 'PAREN')}"
            f" | {sp}_OPEN_SQUARE targets_{inside} {_close(place, 'SQUARE')}"
        )
    some_target = f"({sp}_STAR? target_{at})"
    several = f"{some_target} {sp}_COMMA ({some_target} ({sp}_COMMA {some_target})* {sp}_COMMA?)?"
    yield f"targets_{at}: target_{at} | {several}"


def _parameters(at: str, sp: str, *, prefix: str, parameter: str, starred: str) -> Iterator[str]:
    """Write a parameter list: those with defaults follow those without, `*` stands once, `**` last."""
    rule = f"{prefix}parameters_{at}"
    default = f"{parameter} {sp}_ASSIGN expression_{at}"
    mapping = f"{sp}_DOUBLE_STAR {parameter}"
    named = f"{parameter} ({sp}_ASSIGN expression_{at})?"
    comma = f"{sp}_COMMA"
    yield f"{rule}_plain: {parameter} ({comma} {parameter})*"
    yield f"{rule}_default: {default} ({comma} {default})*"
    yield (
        f"{rule}_positional: {rule}_plain ({comma} {rule}_default)? | {rule}_default"
        f" | {rule}_plain {comma} /\\// ({comma} {rule}_plain)? ({comma} {rule}_default)?"
        f" | ({rule}_plain {comma})? {rule}_default {comma} /\\// ({comma} {rule}_default)?"
    )
    yield f"{rule}_star: {sp}_STAR {starred} ({sp}_COMMA {named})* | {sp}_STAR ({sp}_COMMA {named})+"
    yield f"{rule}_end: {rule}_star ({comma} {mapping})? | {mapping}"
    yield f"{rule}: {rule}_positional ({comma} {rule}_end)? {comma}? | {rule}_end {comma}?"


# --- f-strings


def _f_strings() -> Iterator[str]:
    """Write f-strings as Python 3.11 has them: no backslash, no quote of their own kind and no brace inside braces."""
    forms: list[str] = ["EMPTY_F_STRING"]
    yield "EMPTY_F_STRING: /([fF]|[fF][rR]|[rR][fF])(\\x22\\x22|'')/"
    yield "DOUBLED_BRACE: /\\{\\{|\\}\\}/"
    yield f"SPEC_TEXT: /[^{{}}\\x22'\\\\\\n{_CONTROL}]+/"
    yield "CONVERSION: /![rsa]/"
    yield "DEBUG: / *= */"
    yield "SPEC_COLON: / *:/"
    for letter, quote in (("d", r"\x22"), ("s", "'")):
        upper = letter.upper()
        yield f"PLAIN_{upper}: /{quote}[^\\x22'\\\\#{{}}\\n{_CONTROL}]*{quote}/"
        raw = rf"\\[^{quote}{{}}\n{_CONTROL}]"
        for mark, prefix, escape in (("", "[fF]", _ESCAPE), ("R", "([fF][rR]|[rR][fF])", raw)):
            name = mark + upper
            yield f"F_TEXT_{name}: /([^{quote}\\{{}}\n{_CONTROL}]|{escape})+/"
            yield f"F_LINES_{name}: /([^{quote}\\{{}}{_CONTROL}]|{escape})+/"
            yield f"F_OPEN_{name}: /{prefix}{quote}/"
            yield f"F_OPEN_{name}3: /{prefix}{quote}{{3}}/"
            line_parts = f"(F_TEXT_{name} | DOUBLED_BRACE | field_{letter})+"
            forms.append(f"F_OPEN_{name} {line_parts} F_CLOSE_{upper}")
            parts = f"(F_LINES_{name} | F_QUOTES_{upper} | DOUBLED_BRACE | field_{letter})*"
            forms.append(f"F_OPEN_{name}3 {parts} F_CLOSE_{upper}3")
        yield f"F_CLOSE_{upper}: /{quote}/"
        yield f"F_QUOTES_{upper}: /{quote}{{1,2}}/"
        yield f"F_CLOSE_{upper}3: /{quote}{{3}}/"
        field = f"field_{letter}"
        yield (
            f"{field}: F_OPEN_BRACE expression_f{letter}0 DEBUG? "
            f"(F_CLOSE_BRACE | CONVERSION? SPEC_COLON (SPEC_TEXT | nested_{field})* /\\}}/ | CONVERSION /\\}}/)"
        )
        yield f"nested_{field}: F_OPEN_BRACE expression_f{letter}0 F_CLOSE_BRACE"
    yield f"f_string: {' | '.join(forms)}"


# --- statements


def _statements() -> Iterator[str]:
    last = "(last_statement_0 | LAST_COMMENT)"
    yield f"start: BLANK* (last_statement_0 | statement_0+ {last}?)"
    yield from _simple_statements()
    yield from _headers()
    for level in range(MAX_INDENTATION + 1):
        yield from _compound_statements(level)


def _simple_statements() -> Iterator[str]:
    yield "line: simple (SEMICOLON simple)* END_OF_LINE BLANK*"
    yield "last_line: simple (SEMICOLON simple)* END_OF_TEXT?"
    yield (
        "simple: items_l | assignment | annotation | yielded_l | returned | raised | asserted | deleted | imported"
        ' | "pass" | "break" | "continue" | /(global|nonlocal) +/ NAME (L_COMMA NAME)*'
    )
    value = "(items_l | yielded_l)"
    yield f"assignment: (targets_l L_ASSIGN){{1,5}} {value} | single_target_l ASSIGN_WITH {value}"
    yield f"annotation: single_target_l L_COLON expression_l (L_ASSIGN {value})?"
    yield "returned: /return */ items_l?"
    yield "raised: /raise */ (expression_l (L_FROM expression_l)?)?"
    yield "asserted: /assert */ expression_l (L_COMMA expression_l)?"
    yield "deleted: /del */ deleted_target (L_COMMA deleted_target)* L_COMMA?"
    yield "deleted_target: single_target_l"
    yield "dotted: NAME (/\\./ NAME)*"
    yield "imported: /import +/ dotted_as (L_COMMA dotted_as)*"
    yield "    | /from +/ (dotted | /\\.+/ dotted?) / +import +/ (/\\*/ | name_as (L_COMMA name_as)*)"
    yield "    | /from +/ (dotted | /\\.+/ dotted?) / +import +/ imported_group"
    yield "imported_group: B_OPEN_PAREN name_as_b (B_COMMA name_as_b)* B_COMMA? B_CLOSE_PAREN"
    yield "dotted_as: dotted (L_AS NAME)?"
    yield "name_as: NAME (L_AS NAME)?"
    yield "name_as_b: NAME (B_AS NAME)?"


def _headers() -> Iterator[str]:
    """Write the beginnings of compound statements, up to the colon."""
    condition = "(NAME L_WALRUS)? expression_l"
    yield f"if_header: /if */ {condition}"
    yield f"elif_header: /elif */ {condition}"
    yield 'else_header: "else"'
    yield f"while_header: /while */ {condition}"
    yield "for_header: /(async +)?for */ targets_l L_IN items_l"
    yield 'try_header: "try"'
    yield "except_header: /except */ (expression_l (L_AS NAME)?)?"
    yield 'finally_header: "finally"'
    yield "with_header: /(async +)?with */ with_item (L_COMMA with_item)*"
    yield "with_item: expression_l (L_AS target_l)?"
    yield "def_header: /(async +)?def +/ NAME L_THEN_PAREN parameters_b1? B_CLOSE_PAREN (ARROW expression_l)?"
    yield "parameter_b1: NAME (B_COLON expression_b1)?"
    yield from _parameters("b1", "B", prefix="", parameter="parameter_b1", starred="parameter_b1")
    yield "class_header: /class +/ NAME (L_THEN_PAREN class_arguments? B_CLOSE_PAREN)?"
    yield "class_arguments: class_bases (B_COMMA keywords_b1)? (B_COMMA mappings_b1)? B_COMMA?"
    yield "    | keywords_b1 (B_COMMA mappings_b1)? B_COMMA? | mappings_b1 B_COMMA?"
    yield "class_bases: class_base (B_COMMA class_base)*"
    yield "class_base: expression_b1 | B_STAR expression_b1"
    yield "decorator: /@ */ expression_l BLANK+"


def _compound_statements(level: int) -> Iterator[str]:
    """Write a level's statements, each twice: ended by a newline, and as the last of the text, which may lack it."""
    indent = f"INDENT_{level} " if level else ""
    for prefix, suite, line in (("", f"suite_{level}", "line"), ("last_", f"last_suite_{level}", "last_line")):
        forms = [line]
        if level < MAX_INDENTATION:
            forms += _compounds(indent, f"suite_{level}", None if suite == f"suite_{level}" else suite)
            inner = level + 1
            block = f"(INDENT_{inner} statement_{inner})"
            body = f"{block}+" if not prefix else f"{block}* INDENT_{inner} last_statement_{inner}"
            yield f"{suite}: COLON_AND_LINE BLANK* {body} | L_COLON {line}"
        yield f"{prefix}statement_{level}: " + "\n    | ".join(forms)


def _compounds(indent: str, suite: str, last: str | None) -> Sequence[str]:
    """Return the compound statements; with `last`, those whose final suite is the end of the text."""
    elifs = f"({indent}elif_header {suite}){{0,40}}"
    excepts = f"({indent}except_header {suite})"
    decorated = f"(decorator {indent})* (def_header | class_header)"
    whole: Mapping[str, Sequence[str]] = {
        f"if_header {suite} {elifs}": ["elif_header", "else_header"],
        f"(while_header | for_header) {suite}": ["else_header"],
        f"try_header {suite} {excepts}+": ["else_header", "finally_header"],
        f"try_header {suite} {excepts}+ {indent}else_header {suite}": ["finally_header"],
        f"try_header {suite}": ["finally_header"],
    }
    if last is None:
        return [
            f"{decorated} {suite}",
            f"with_header {suite}",
            f"if_header {suite} {elifs} ({indent}else_header {suite})?",
            f"(while_header | for_header) {suite} ({indent}else_header {suite})?",
            f"try_header {suite} {excepts}+ ({indent}else_header {suite})? ({indent}finally_header {suite})?",
            f"try_header {suite} {indent}finally_header {suite}",
        ]
    forms = [f"{head} {last}" for head in (decorated, "with_header", "if_header", "(while_header | for_header)")]
    forms.append(f"try_header {suite} {excepts}* {indent}except_header {last}")
    for before, final_headers in whole.items():
        forms += [f"{before} {indent}{header} {last}" for header in final_headers]
    return forms
