"""Python: whatever the grammar accepts parses, and real code is accepted. The judge is Python's own parser."""

import argparse
import ast
import collections
import dataclasses
import gzip
import json
import os
import random
import re
import textwrap
import types
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.grammar_walks import BYTE_EOS, accepts, allowed_ids, constraint_of

from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.constraint import TokenConstraint

NUM_WALKS = int(os.environ.get("QWENSTACK_PYTHON_WALKS", "300"))
MODULES = [argparse, collections, dataclasses, textwrap, re, json]


@pytest.fixture(scope="module")
def python() -> TokenConstraint:
    return constraint_of(Grammar(kind="python"))


def parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def source_of(module: types.ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text()


class Scribbler:
    """Writes bytes that often follow each other in real code, under the mask; the rest at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._after: dict[bytes, Counter[int]] = defaultdict(Counter)
        for module in MODULES:
            code = source_of(module).encode()
            for place in range(len(code) - 3):
                self._after[code[place : place + 3]][code[place + 3]] += 1
                self._after[code[place : place + 1]][code[place + 1]] += 1

    def write(self, constraint: TokenConstraint, limit: int) -> str | None:
        constraint = constraint.clone()
        text = bytearray(b"\n")
        for _ in range(4 * limit):
            allowed = allowed_ids(constraint).tolist()
            assert allowed
            if BYTE_EOS in allowed and self._rng.random() < (0.5 if len(text) > limit else 0.02):
                return text[1:].decode()
            byte = self._next([one for one in allowed if one < BYTE_EOS], bytes(text), wants_end=len(text) > limit)
            constraint.accept(byte)
            text.append(byte)
        return None

    def _next(self, allowed: list[int], text: bytes, *, wants_end: bool) -> int:
        rng = self._rng
        chance = rng.random()
        closing = [one for one in allowed if one in b")]}\"'\n:1xpas"]
        if wants_end and closing and rng.random() < 0.8:
            return rng.choice(closing)
        counts = self._after.get(text[-3:] if chance < 0.6 else text[-1:], Counter()) if chance < 0.85 else Counter()
        likely = {one: counts[one] for one in allowed if counts[one]}
        if likely:
            return rng.choices(list(likely), list(likely.values()))[0]
        return rng.choice([one for one in allowed if one < 128] or allowed)


def test_whatever_is_written_under_the_mask_parses(python: TokenConstraint):
    rng = random.Random(int(os.environ.get("QWENSTACK_FUZZ_SEED", "20261125")))
    scribbler = Scribbler(rng)
    texts = [scribbler.write(python, rng.choice([30, 100, 300])) for _ in range(NUM_WALKS)]
    finished = [text for text in texts if text is not None]
    assert len(finished) > 0.7 * NUM_WALKS
    assert [text for text in finished if not parses(text)] == []


def functions_of(source: str) -> list[str]:
    """Return functions and classes of up to 80 lines, as they are written, moved to the left."""
    lines = source.splitlines(keepends=True)
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.end_lineno is not None:
            code = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
            if node.end_lineno - node.lineno < 80 and parses(code):
                found.append(code)
    return found


def test_the_standard_library_is_accepted_nearly_whole(python: TokenConstraint):
    functions = [code for module in MODULES for code in functions_of(source_of(module))]
    functions = random.Random(1).sample(functions, 120)
    as_written = [code for code in functions if not accepts(python, code)]
    reformatted = [code for code in map(ast.unparse, map(ast.parse, functions)) if not accepts(python, code)]
    print(f"refused of {len(functions)}: {len(as_written)} as written, {len(reformatted)} reformatted")
    assert len(as_written) <= 0.05 * len(functions)
    assert len(reformatted) <= 0.02 * len(functions)


def test_programs_of_humaneval_are_accepted(python: TokenConstraint):
    folder = os.environ.get("QWENSTACK_DATA")
    path = Path(folder or "/nonexistent") / "code" / "humaneval.jsonl.gz"
    if not path.exists():
        pytest.skip("QWENSTACK_DATA names no folder with code/humaneval.jsonl.gz")
    with gzip.open(path, "rt") as lines:
        problems = [json.loads(line) for line in lines]
    programs = [problem["prompt"] + problem["canonical_solution"] for problem in problems]
    refused = [program for program in programs if not accepts(python, program)]
    print(f"refused of {len(programs)}: {len(refused)}")
    assert len(refused) <= 0.05 * len(programs)


GOOD = [
    "x = 1",
    "def f(a, /, b: int = 1, *c, d=2, **e) -> 'int':\n    '''text\n    more'''\n\n    # remark\n    return a  # end\n",
    "async def f():\n    async with a as b, c:\n        async for x in y: await z\n    return [x async for x in y]",
    "@a.b(c)\n@d\nclass A(B, metaclass=C):\n    x: int = 5\n    y: list[int]\n",
    "try:\n    x\nexcept (A, B) as e:\n    raise C from e\nelse:\n    y\nfinally:\n    z",
    "x = [i for i in range(10) if i % 2 if i]\ny = {1: 2, **a}\nz = {*a, b}\nw = (yield)\n",
    "a, *b = c\nx[1:2, ::3] = 5\ny.z += 1",
    "x is nothing\nx is not None\nx not in y\nnot x\nnotes = 1\ninner = iffy",
    "print(f\"{x!r:>{w}} {a['b']=} {{}}\", rf'\\d{y}', b'\\x00', 'a' f'b' r'\\c')",
    "lambda x, *y, z=1: (x, y)\nx = a if b else c if d else e\nif (n := 5) > 3: pass",
    "from . import a\nfrom .b import (c as d,\n    e,)\nimport f.g as h, i",
    "if(a):\n    return(b)\nassert not(c), 'd'\nwhile True: break",
    "x = 1_000 + 0xff + 1e-5 + .5j + 00\nx = a + \\\n    b\nx = (a\n     # why\n     + b)",
    "def f(): yield from x; return\n",
    "for i, (a, b) in enumerate(x):\n    if i:\n        pass\n    elif b:\n        continue\nelse:\n    del a, b[0]\n",
]
BAD = [
    "x = 0777",
    "1x = 2",
    "f() = 1",
    "None = 1",
    "class = 1",
    "def f(a=1, b): pass",
    "f(a=1, b)",
    "f(**a, *b)",
    "f(x for x in y, 1)",
    "(*a)",
    "*a == b",
    "x = '\\x1'",
    "b'é'",
    "b'a' 'b'",
    "'\\u12'",
    "'\\N{no such name}'",
    "if x:\npass",
    "if x:\n  pass\n   pass",
    "  x = 1",
    "x = (1",
    "try:\n    x\n",
    "def f():\n    # only a remark\n",
    "a + not b",
    "x = y z",
    "a forb in c",
    "(x forb in c)",
    "f'{}'",
    "f'{a b}'",
    "x = 1 +\n",
    "else:\n    pass",
    "x = \\\n",
    "@a;\ndef f(): pass",
    "lambda: (yield) = 1",
]


@pytest.mark.parametrize("text", GOOD)
def test_usual_python_is_accepted(python: TokenConstraint, text: str):
    assert parses(text)
    assert accepts(python, text)


@pytest.mark.parametrize("text", BAD)
def test_what_python_does_not_parse_is_not_accepted(python: TokenConstraint, text: str):
    assert not parses(text)
    assert not accepts(python, text)


def test_an_empty_answer_is_no_program(python: TokenConstraint):
    assert not python.is_complete
    assert not accepts(python, "# only a remark\n")


def test_nesting_ends_before_pythons_parser_gives_up(python: TokenConstraint):
    assert accepts(python, "(" * 12 + "x" + ")" * 12)
    assert not accepts(python, "(" * 13 + "x" + ")" * 13)
    blocks = "".join("    " * level + "if x:\n" for level in range(10)) + "    " * 10 + "pass"
    assert accepts(python, blocks)
    assert not accepts(python, "".join("    " * level + "if x:\n" for level in range(11)) + "    " * 11 + "pass")
    worst = "x" + " + x" * 101
    assert not accepts(python, worst)
    widest = "(" * 12 + "x" + ".y" * 100 + " + x" * 100 + (")" + ".y" * 100 + " + x" * 100) * 12
    assert accepts(python, widest)
    assert parses(widest)
