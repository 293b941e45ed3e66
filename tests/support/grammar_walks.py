"""Random texts under a grammar's mask: what a model without any sense would write."""

from __future__ import annotations

import random

import numpy as np

from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.constraint import MatcherVocabulary, TokenConstraint
from qwenstack.engine.grammar.lark_source import lark_of
from qwenstack.engine.grammar.token_table import TokenTable, matcher_vocabulary
from qwenstack.tokenizer import ToolFormat

BYTE_EOS = 256
_WORDS = [
    "true",
    "false",
    "null",
    '{"',
    '":',
    '", "',
    "<tool_call>",
    "</tool_call>",
    '"arguments"',
    "name",
    "é",
    "中文",
]
BYTE_TABLE = TokenTable(
    [bytes([byte]) for byte in range(256)] + [b""] + [word.encode() for word in _WORDS], [BYTE_EOS], []
)
"""Every byte, an end token, and a few words that cut across a grammar's own tokens."""
CLOSING = frozenset(b"\"')]}\n,>0")


def vocabulary_of(table: TokenTable, *, with_markers: bool = False) -> MatcherVocabulary:
    """Return a table in the matcher's form."""
    words = table.usable_words_with_markers if with_markers else table.usable_words
    return MatcherVocabulary(matcher_vocabulary(table), frozenset(table.eos_token_ids), words, table.fence_ids)


BYTES = vocabulary_of(BYTE_TABLE)


def constraint_of(
    grammar: Grammar, vocabulary: MatcherVocabulary = BYTES, *, tool_format: ToolFormat = "hermes"
) -> TokenConstraint:
    """Compile a grammar here, without the checker."""
    return TokenConstraint(lark_of(grammar, tool_format), vocabulary, grammar)


def allowed_ids(constraint: TokenConstraint) -> np.ndarray:
    """Return the ids that may come next."""
    return np.flatnonzero(np.unpackbits(constraint.allowed_words().view(np.uint8), bitorder="little"))


def walk(
    constraint: TokenConstraint, rng: random.Random, table: TokenTable = BYTE_TABLE, *, limit: int = 120
) -> str | None:
    """Draw tokens under the mask until the text ends; None if it does not within five times the limit.

    Beyond the limit, tokens that close something are preferred, and the end is taken as soon as it may come.
    """
    constraint = constraint.clone()
    text = bytearray()
    ends = frozenset(table.eos_token_ids)
    for step in range(5 * limit):
        ids = allowed_ids(constraint).tolist()
        if not ends.isdisjoint(ids) and (ends.issuperset(ids) or step > limit or rng.random() < 0.1):
            assert constraint.is_complete
            return text.decode()
        ids = [one for one in ids if one not in ends]
        closing = [one for one in ids if table.tokens[one][0] in CLOSING]
        if closing and rng.random() < (0.9 if step > limit else 0.3):
            ids = closing
        token = rng.choice(ids)
        constraint.accept(token)
        text += table.tokens[token]
    return None


def accepts(constraint: TokenConstraint, text: str) -> bool:
    """Return whether a whole text is in the language, byte by byte."""
    constraint = constraint.clone()
    for byte in text.encode():
        if byte not in allowed_ids(constraint):
            return False
        constraint.accept(byte)
    return constraint.is_complete
