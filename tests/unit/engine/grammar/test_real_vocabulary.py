"""Grammars over the vocabulary of a real model: texts fit, control tokens never come, a mask costs little."""

import ast
import json
import random
import time
import warnings
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from support.grammar_walks import allowed_ids, constraint_of, walk
from support.random_schemas import random_schema

from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.constraint import MatcherVocabulary, TokenConstraint
from qwenstack.engine.grammar.token_table import TokenTable, matcher_vocabulary, token_table
from qwenstack.engine.loading import load_tokenizer
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.tokenizer import Tokenizer

pytestmark = [pytest.mark.weights]

NUM_SCHEMAS = 40
PROGRAM = '''\
import math


def area(shapes: list[dict], *, scale: float = 1.0) -> float:
    """Return the whole area of circles and squares."""
    total = 0.0
    for number, shape in enumerate(shapes):
        if shape["kind"] == "circle" and shape.get("radius") is not None:
            total += math.pi * shape["radius"] ** 2  # 圆
        elif shape["kind"] == "square":
            total += shape["side"] ** 2
        else:
            raise ValueError(f"shape {number} is {shape!r}")
    return total * scale


print(area([{"kind": "circle", "radius": 2}, {"kind": "square", "side": 3}]))
'''


@pytest.fixture(scope="module")
def tokenizer(coder_gguf: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(coder_gguf))


@pytest.fixture(scope="module")
def table(tokenizer: Tokenizer) -> TokenTable:
    return token_table(tokenizer)


@pytest.fixture(scope="module")
def vocabulary(table: TokenTable) -> MatcherVocabulary:
    return MatcherVocabulary(
        matcher_vocabulary(table), frozenset(table.eos_token_ids), table.usable_words, table.fence_ids
    )


def test_random_tokens_under_the_mask_give_valid_json(table: TokenTable, vocabulary: MatcherVocabulary):
    rng = random.Random(11)
    finished = 0
    for _ in range(NUM_SCHEMAS):
        schema = random_schema(rng)
        constraint = constraint_of(Grammar(kind="json_schema", source=json.dumps(schema)), vocabulary)
        text = walk(constraint, rng, table, limit=40)
        if text is not None:
            finished += 1
            jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    assert finished >= 0.8 * NUM_SCHEMAS


def test_random_tokens_under_the_mask_give_python_that_parses(table: TokenTable, vocabulary: MatcherVocabulary):
    rng = random.Random(12)
    python = constraint_of(Grammar(kind="python"), vocabulary)
    texts = [text for _ in range(12) if (text := walk(python, rng, table, limit=30)) is not None]
    assert len(texts) >= 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in texts:
            ast.parse(text)


def test_control_tokens_and_padding_never_come(tokenizer: Tokenizer, vocabulary: MatcherVocabulary):
    constraint = constraint_of(Grammar(kind="regex", source="(?s:.)*"), vocabulary)
    masked_V = constraint.mask_logits(np.zeros(151_936, np.float32))
    ids = np.flatnonzero(np.isfinite(masked_V))
    assert set(ids[ids >= tokenizer.vocab_size]) == set()
    assert tokenizer.added_token_ids.intersection(ids.tolist()) == tokenizer.eos_token_ids
    assert len(ids) > 0.99 * tokenizer.vocab_size


def replay(constraint: TokenConstraint, tokenizer: Tokenizer, text: str) -> list[float]:
    """Return the seconds of processor time of each token of a text that the grammar accepts."""
    constraint = constraint.clone()
    logits_V = np.zeros(tokenizer.vocab_size, np.float32)
    seconds: list[float] = []
    for token_id in tokenizer.encode(text):
        start = time.thread_time()
        masked_V = constraint.mask_logits(logits_V)
        assert np.isfinite(masked_V[token_id])
        constraint.accept(token_id)
        seconds.append(time.thread_time() - start)
    assert constraint.is_complete
    return seconds


def test_the_texts_that_models_write_pass_and_a_token_costs_little(tokenizer: Tokenizer, vocabulary: MatcherVocabulary):
    people = [{"name": f"Ada Lovelace {n}", "age": 36 + n, "tags": ["math", "程序"], "mail": None} for n in range(12)]
    schema = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "mail": {"type": ["string", "null"]},
            },
            "required": ["name", "age", "tags", "mail"],
            "additionalProperties": False,
        },
    }
    cases = {
        "json_schema": (Grammar(kind="json_schema", source=json.dumps(schema)), json.dumps(people, ensure_ascii=False)),
        "python": (Grammar(kind="python"), PROGRAM),
    }
    # Limits are several times what was measured on two busy cores; `-s` shows the figures.
    limits_ms = {"json_schema": 1.0, "python": 8.0}
    for kind, (grammar, text) in cases.items():
        seconds = replay(constraint_of(grammar, vocabulary), tokenizer, text)
        mean_ms = 1000 * sum(seconds) / len(seconds)
        print(f"{kind}: {len(seconds)} tokens, mean {mean_ms:.3f} ms, median {1000 * np.median(seconds):.3f} ms")
        assert mean_ms < limits_ms[kind]


def test_forced_tokens_are_the_models_own(tokenizer: Tokenizer, vocabulary: MatcherVocabulary):
    schema = {"type": "object", "properties": {"arguments": {"type": "string"}}, "required": ["arguments"]}
    constraint = constraint_of(Grammar(kind="json_schema", source=json.dumps(schema)), vocabulary)
    for token_id in tokenizer.encode('{"'):
        constraint.accept(token_id)
    assert constraint.forced_token_ids(8) == tokenizer.encode('arguments"')
    assert allowed_ids(constraint).size < 20
