"""One answer's mask: what it allows, when the text may end, and that answers do not disturb each other."""

import random

import numpy as np
import pytest
from support.grammar_walks import BYTE_EOS, BYTE_TABLE, BYTES, allowed_ids, constraint_of, vocabulary_of

from qwenstack.core.errors import EngineError, RequestError
from qwenstack.core.grammar import Grammar, GrammarKind
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.grammar.constraint import TokenConstraint
from qwenstack.engine.grammar.token_table import TokenTable
from qwenstack.engine.sampler import TokenHistory, choose_token
from qwenstack.engine.sequence import SayOfGrammar

V = len(BYTE_TABLE.tokens)
PATTERNS = ["[a-z]+", "a|b", "(?s:.)*", "[^a]*", "a{3}", "[0-9]{1,3}"]


def regex(pattern: str) -> TokenConstraint:
    return constraint_of(Grammar(kind="regex", source=pattern))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("num_rows", [V, V + 40, V + 400])
def test_the_masked_row_is_the_row_where_allowed_and_minus_infinity_elsewhere(pattern: str, num_rows: int):
    rng = np.random.default_rng(1)
    logits_V = rng.standard_normal(num_rows, np.float32)
    before = logits_V.copy()
    constraint = regex(pattern)
    masked_V = constraint.mask_logits(logits_V)
    ids = allowed_ids(constraint)
    expected_V = np.full(num_rows, -np.inf, np.float32)
    expected_V[ids] = logits_V[ids]
    np.testing.assert_array_equal(masked_V, expected_V)
    np.testing.assert_array_equal(logits_V, before)
    assert masked_V.dtype == np.float32


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.99, 0.9995])
def test_rows_of_a_large_vocabulary_are_masked_alike_by_each_way_of_writing(share: float):
    rng = random.Random(2)
    size = 20_000
    letters = ["a" if rng.random() < share else "b" for _ in range(size)]
    table = TokenTable(
        [b"", *(letter.encode() + str(number).encode() for number, letter in enumerate(letters))], [0], []
    )
    constraint = constraint_of(Grammar(kind="regex", source="a[0-9]*"), vocabulary_of(table))
    logits_V = np.arange(size + 1, dtype=np.float32)
    masked_V = constraint.mask_logits(logits_V)
    expected = [number for number, letter in enumerate(letters, start=1) if letter == "a"]
    assert np.flatnonzero(np.isfinite(masked_V)).tolist() == expected
    assert masked_V[expected].tolist() == expected


def test_the_end_may_come_exactly_where_the_text_is_whole():
    constraint = regex("ab?")
    assert not constraint.is_complete
    assert BYTE_EOS not in allowed_ids(constraint)
    constraint.accept(ord("a"))
    assert constraint.is_complete
    assert not constraint.must_end
    assert set(allowed_ids(constraint)) == {ord("b"), BYTE_EOS}
    constraint.accept(ord("b"))
    assert constraint.must_end
    assert set(allowed_ids(constraint)) == {BYTE_EOS}
    constraint.accept(BYTE_EOS)
    assert constraint.is_complete
    constraint.accept(ord("x"))  # an engine that goes on past the end does no harm


def test_clones_go_their_own_ways():
    base = regex("(ab|cd)+")
    first, second = base.clone(), base.clone()
    first.accept(ord("a"))
    assert set(allowed_ids(first)) == {ord("b")}
    assert set(allowed_ids(second)) == {ord("a"), ord("c")}
    later = first.clone()
    later.accept(ord("b"))
    assert set(allowed_ids(first)) == {ord("b")}


def test_the_mask_depends_on_nothing_but_the_tokens_accepted():
    rng = random.Random(4)
    base = constraint_of(Grammar(kind="json_object"))
    for _ in range(10):
        eager, lazy, tokens = base.clone(), base.clone(), []
        for _ in range(30):
            ids = [one for one in allowed_ids(eager).tolist() if one != BYTE_EOS]
            if not ids:
                break
            tokens.append(rng.choice(ids))
            eager.accept(tokens[-1])
        for token in tokens:
            lazy.accept(token)
        assert allowed_ids(lazy).tolist() == allowed_ids(eager).tolist()


def test_forced_tokens_are_what_must_follow():
    constraint = constraint_of(Grammar(kind="choice", source='["name: true", "name: false"]'))
    text = b"".join(BYTE_TABLE.tokens[one] for one in constraint.forced_token_ids(100))
    assert text == b"name: "
    assert len(constraint.forced_token_ids(2)) == 2
    assert constraint.forced_token_ids(0) == []
    for byte in b"name: t":
        constraint.accept(byte)
    assert b"".join(BYTE_TABLE.tokens[one] for one in constraint.forced_token_ids(100)) == b"rue"
    assert regex("a|b").forced_token_ids(5) == []


def test_a_token_that_the_mask_forbids_is_the_engines_mistake():
    with pytest.raises(EngineError, match="Token 120"):
        regex("a").accept(ord("x"))


def test_a_grammar_that_costs_too_much_fails_by_itself_and_not_forever():
    rules = "start: a0\n" + "".join(f"a{n}: a{n + 1} a{n + 1}\n" for n in range(60)) + 'a60: "x"?\n'
    constraint = constraint_of(Grammar(kind="ebnf", source=rules))

    def write_on() -> None:
        for _ in range(1_000):
            constraint.mask_logits(np.zeros(V, np.float32))
            constraint.accept(ord("x"))

    with pytest.raises(RequestError, match="items"):
        write_on()


def test_added_tokens_stand_for_nothing_and_markers_only_in_tools():
    table = TokenTable([b"a", b"", b"<tool_call>", b"<", b""], [4], [2])
    usual = constraint_of(Grammar(kind="regex", source="(?s:.)+"), vocabulary_of(table))
    assert set(allowed_ids(usual)) == {0, 3}
    marked = constraint_of(Grammar(kind="regex", source="(?s:.)+"), vocabulary_of(table, with_markers=True))
    assert set(allowed_ids(marked)) == {0, 2, 3}
    assert BYTES.inner_words.sum() < BYTES.usable_words.sum()


ENDS, FENCES = (256, 257), (258, 259, 260)
FENCE_TABLE = TokenTable(
    [*(bytes([byte]) for byte in range(256)), b"", b"", b"```", b"```\n", b" ```", b"``", b"x```"], [*ENDS], []
)
FENCE_VOCABULARY = vocabulary_of(FENCE_TABLE)


def python_after(text: str, kind: GrammarKind = "python") -> TokenConstraint:
    constraint = constraint_of(Grammar(kind=kind, source=".*" if kind == "regex" else ""), FENCE_VOCABULARY)
    for byte in text.encode():
        constraint.accept(byte)
    return constraint


def row(**logits: float) -> np.ndarray:
    """Return a row of distinct logits below 0, with some of them set by id."""
    values_V = -1.0 - np.arange(len(FENCE_TABLE.tokens), dtype=np.float32) / 64
    for token_id, value in logits.items():
        values_V[int(token_id.removeprefix("id"))] = value
    return values_V


@pytest.mark.parametrize("fence_id", FENCES)
@pytest.mark.parametrize("program", ["x = 1\n", "x = 1", "def f():\n    return 1\n\n", "x = 1\n# done\n"])
def test_a_markdown_fence_after_a_whole_program_counts_as_its_end(program: str, fence_id: int):
    constraint = python_after(program)
    logits_V = row(**{f"id{fence_id}": 3.0, "id257": 1.0})
    before_V = logits_V.copy()
    expected_V = logits_V.copy()
    expected_V[257] = 3.0  # the likelier of the two end tokens
    np.testing.assert_array_equal(constraint.count_fence_as_end(logits_V), expected_V)
    np.testing.assert_array_equal(logits_V, before_V)
    assert constraint.mask_logits(constraint.count_fence_as_end(logits_V)).argmax() == 257


@pytest.mark.parametrize(
    ("text", "logits"),
    [
        ("", {"id258": 3.0}),  # no program yet
        ("def f():\n", {"id258": 3.0}),  # not whole
        ("x = (", {"id258": 3.0}),
        ("x = 1\n# ", {"id258": 3.0}),  # a comment may have a fence
        ("x = 1\n", {"id258": 3.0, "id256": 3.5}),  # the end is likelier as it is
        ("x = 1\n", {"id261": 3.0, "id262": 3.0, "id258": -9.0, "id259": -9.0, "id260": -9.0}),  # no fences
    ],
)
def test_elsewhere_a_fence_is_nothing_special(text: str, logits: dict[str, float]):
    logits_V = row(**logits)
    np.testing.assert_array_equal(python_after(text).count_fence_as_end(logits_V), logits_V)


def test_only_programs_end_with_a_fence():
    logits_V = row(id258=3.0)
    np.testing.assert_array_equal(python_after("ab", "regex").count_fence_as_end(logits_V), logits_V)
    ended = python_after("x = 1\n")
    ended.accept(ENDS[0])
    np.testing.assert_array_equal(ended.count_fence_as_end(logits_V), logits_V)


def test_an_end_is_drawn_as_often_as_the_fence_would_be():
    say = SayOfGrammar(python_after("x = 1\n"), ())
    logits_V = np.full(len(FENCE_TABLE.tokens), -50.0, np.float32)
    logits_V[[ord("y"), FENCES[0]]] = np.log([0.75, 0.25])
    params = SamplingParams(temperature=1.0)
    history = TokenHistory(np.array([], np.int64))

    def draw(uniform: float, forbidden_ids: tuple[int, ...] = ()) -> int:
        row_V = say.count_fence_as_end(logits_V)
        return choose_token(row_V, params, history, forbidden_ids=forbidden_ids, uniform=uniform, restriction=say)

    drawn = [draw((at + 0.5) / 100) for at in range(100)]
    assert (drawn.count(ord("y")), sum(token_id in ENDS for token_id in drawn)) == (75, 25)
    assert {draw((at + 0.5) / 100, ENDS) for at in range(100)} == {ord("y")}  # as with `min_tokens`
