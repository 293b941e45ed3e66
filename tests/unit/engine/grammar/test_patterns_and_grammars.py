"""Patterns, choices, GBNF and Lark: every finished text is in the language, by `re` and by the `lark` package."""

import ast
import json
import random
import re

import lark
import pytest
from support.grammar_walks import BYTE_EOS, accepts, allowed_ids, constraint_of, walk
from support.random_grammars import (
    ARITHMETIC_GBNF,
    EMAIL_LARK,
    NESTED_GBNF,
    random_node,
    to_gbnf,
    to_lark,
    to_regex,
)

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.gbnf import gbnf_lark
from qwenstack.engine.grammar.lark_source import lark_of
from qwenstack.engine.grammar.refusal import GrammarRefusal

NUM_GRAMMARS = 100


@pytest.mark.parametrize("notation", ["regex", "gbnf", "lark"])
def test_every_finished_text_of_100_random_grammars_matches(notation: str):
    rng = random.Random(f"grammars {notation}")
    finished = 0
    for _ in range(NUM_GRAMMARS):
        node = random_node(rng)
        pattern = to_regex(node)
        grammar = {
            "regex": Grammar(kind="regex", source=pattern),
            "gbnf": Grammar(kind="ebnf", source=f"root ::= {to_gbnf(node)}\n"),
            "lark": Grammar(kind="ebnf", source=f"start: TEXT\nTEXT: {to_lark(node)}\n"),
        }[notation]
        constraint = constraint_of(grammar)
        texts = [text for _ in range(3) if (text := walk(constraint, rng, limit=30)) is not None]
        finished += bool(texts)
        for text in texts:
            assert re.fullmatch(pattern, text), f"{grammar.source!r} allowed {text!r}"
    assert finished >= 0.9 * NUM_GRAMMARS


def test_recursive_gbnf_gives_only_its_language():
    rng = random.Random(5)
    arithmetic = constraint_of(Grammar(kind="ebnf", source=ARITHMETIC_GBNF))
    nested = constraint_of(Grammar(kind="ebnf", source=NESTED_GBNF))
    texts = [walk(arithmetic, rng, limit=40) for _ in range(40)]
    assert sum(text is not None for text in texts) > 20
    for text in texts:
        if text is not None:
            assert re.fullmatch(r"[-0-9+*/()]+", text)
            ast.parse(re.sub(r"0+(?=\d)", "", text), mode="eval")
    texts = [walk(nested, rng, limit=40) for _ in range(40)]
    assert sum(text is not None for text in texts) > 20
    for text in texts:
        if text is not None:
            json.loads(text)


def test_lark_grammars_are_the_language_of_the_lark_package():
    rng = random.Random(6)
    constraint = constraint_of(Grammar(kind="ebnf", source=EMAIL_LARK))
    oracle = lark.Lark(EMAIL_LARK)
    texts = [text for _ in range(40) if (text := walk(constraint, rng, limit=30)) is not None]
    assert len(texts) > 20
    for text in texts:
        oracle.parse(text)
    assert accepts(constraint, "a@b,(c@d)")
    assert not accepts(constraint, "a@b,(c@d")


def test_neighbours_in_gbnf_match_as_one_and_not_by_the_longest_first():
    constraint = constraint_of(Grammar(kind="ebnf", source='root ::= list\nlist ::= [a-z]+ "b" ("," list)?\n'))
    assert accepts(constraint, "aabb")
    assert accepts(constraint, "ab,bb")
    assert not accepts(constraint, "aa")


def test_a_choice_is_one_of_the_texts():
    choices = ["yes", "yes/no", "不", "a\nb", 'q"[.*']
    constraint = constraint_of(Grammar(kind="choice", source=json.dumps(choices)))
    rng = random.Random(1)
    assert {walk(constraint, rng) for _ in range(60)} == set(choices)
    assert [bytes([one]).decode(errors="replace") for one in allowed_ids(constraint) if one < 128] == ["a", "q", "y"]


def test_anchors_around_a_pattern_say_nothing():
    for pattern in ("^ab+$", "ab+"):
        constraint = constraint_of(Grammar(kind="regex", source=pattern))
        assert accepts(constraint, "abb")
        assert not accepts(constraint, "abbc")
    assert accepts(constraint_of(Grammar(kind="regex", source=r"cost: \$")), "cost: $")
    assert accepts(constraint_of(Grammar(kind="regex", source="a/b\\/c")), "a/b/c")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('root ::= "a', "not GBNF"),
        ('root ::= ("a"', r"`\)`"),
        ("root ::= missing", "`missing`"),
        ('other ::= "a"', "no rule `root`"),
        ('root ::= "a"\nroot ::= "b"', "twice"),
        ('root ::= "a"{1,100000}', "at most 10000"),
        ("root ::= [z-a]", "z-a"),
        ('root ::= "\\q"', "escape"),
        ("root ::= [\\uD800]", "no character"),
        ("root ::= <[1]>", "not GBNF"),
        ("root ::= " + "(" * 100, "64"),
    ],
)
def test_gbnf_that_is_wrong_gets_a_sentence(source: str, words: str):
    with pytest.raises(GrammarRefusal, match=words):
        gbnf_lark(source)


@pytest.mark.parametrize(
    "source",
    ['%llguidance {"allow_invalid_utf8": true}\nstart: "a"', 'start[stop="x"]: /.*/', "start[max_tokens=3]: /.*/"],
)
def test_options_of_the_matcher_are_not_for_callers(source: str):
    with pytest.raises(GrammarRefusal, match="leave"):
        lark_of(Grammar(kind="ebnf", source=source))


def test_a_grammar_cannot_ask_for_a_control_token():
    with pytest.raises(RequestError, match=r"no token|cannot be used"):
        constraint_of(Grammar(kind="ebnf", source=f"start: <[{BYTE_EOS}]> /a/")).allowed_words()


@pytest.mark.parametrize(("kind", "source"), [("choice", "[]"), ("choice", '[""]'), ("choice", "[1]"), ("regex", "")])
def test_an_empty_wish_is_refused(kind: str, source: str):
    with pytest.raises(GrammarRefusal):
        lark_of(Grammar(kind=kind, source=source))  # type: ignore[arg-type]
