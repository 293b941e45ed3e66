"""Random grammars as trees, written in three notations: GBNF, Lark, and the regular expressions of Python's `re`."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_LITERALS = ["a", "bc", "=>", "x-1", "中", 'q"', "\\", "[", "/", "\n", "if"]
_SETS = ["a-c", "0-9", "^a-z\n", "xyz_", "一-三"]


@dataclass(frozen=True)
class Node:
    """A literal, a set, a sequence, a choice or a repetition."""

    kind: str
    text: str = ""
    parts: tuple[Node, ...] = ()


def random_node(rng: random.Random, depth: int = 0) -> Node:
    """Return a tree that does not recurse."""
    kind = rng.choice(
        ["literal", "set"] if depth > 3 else ["literal", "set", "sequence", "sequence", "choice", "repeat"]
    )
    if kind == "literal":
        return Node(kind, rng.choice(_LITERALS))
    if kind == "set":
        return Node(kind, rng.choice(_SETS))
    if kind == "repeat":
        return Node(kind, rng.choice(["*", "+", "?", "{2}", "{1,3}", "{2,}"]), (random_node(rng, depth + 1),))
    return Node(kind, parts=tuple(random_node(rng, depth + 1) for _ in range(rng.randrange(2, 4))))


def to_regex(node: Node) -> str:
    """Return the tree for `re.fullmatch`."""
    match node.kind:
        case "literal":
            return re.escape(node.text)
        case "set":
            return f"[{node.text}]"
        case "repeat":
            return f"(?:{to_regex(node.parts[0])}){node.text}"
        case "sequence":
            return "".join(f"(?:{to_regex(part)})" for part in node.parts)
        case _:
            return "|".join(to_regex(part) for part in node.parts)


def to_gbnf(node: Node) -> str:
    """Return the tree as one GBNF expression."""
    match node.kind:
        case "literal":
            return '"' + node.text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        case "set":
            return "[" + node.text.replace("\n", "\\n") + "]"
        case "repeat":
            return f"({to_gbnf(node.parts[0])}){node.text}"
        case "sequence":
            return " ".join(f"({to_gbnf(part)})" for part in node.parts)
        case _:
            return " | ".join(to_gbnf(part) for part in node.parts)


def to_lark(node: Node) -> str:
    """Return the tree as the body of one Lark terminal."""
    match node.kind:
        case "literal":
            return '"' + node.text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        case "set":
            return "/[" + node.text.replace("\n", "\\n") + "]/"
        case "repeat":
            return f"({to_lark(node.parts[0])}){node.text}"
        case "sequence":
            return " ".join(f"({to_lark(part)})" for part in node.parts)
        case _:
            return " | ".join(f"({to_lark(part)})" for part in node.parts)


ARITHMETIC_GBNF = """
root ::= term (("+" | "-") term)*
term ::= factor (("*" | "/") factor)*   # higher
factor ::= [0-9]+ | "(" root ")" | "-" factor
"""
NESTED_GBNF = """
root ::= value
value ::= "[" ws (value ("," ws value)*)? ws "]" | "{" ws (pair ("," ws pair)*)? ws "}" | atom
pair ::= "\\"" [a-z]{1,3} "\\"" ":" ws value
atom ::= "true" | "false" | [1-9] [0-9]{0,3}
ws ::= [ \\n]{0,2}
"""
EMAIL_LARK = r"""
start: item ("," item)*
item: WORD "@" WORD | "(" start ")"
WORD: /[a-z]{1,5}/
"""
