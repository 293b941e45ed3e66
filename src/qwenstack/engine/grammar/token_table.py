"""A model's vocabulary as the matcher needs it: the bytes that each id adds to the text.

Added tokens (`<|im_start|>`, `<think>`) stand for nothing here, so that no grammar can ask for one: what looks like
them in a text is spelled with ordinary tokens. The exceptions are the end tokens, which end the text, and the markers
of tool calls, which only the grammar of tools may use.
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

import msgspec
import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from qwenstack.tokenizer import Tokenizer, ToolFormat

TOOL_CALL_BEGIN = "<tool_call>"
TOOL_CALL_END = "</tool_call>"

_SLICES = [r'[^"\\\x00-\x1F\x7F]{1,30}', r'[^"\\\x00-\x1F\x7F]+']
"""Sets of tokens that the matcher allows or refuses as a whole where it can: what may stand inside a JSON string. Of
llguidance's four these two pay; each costs 0.1 s when 152,000 tokens are taken in (2026-11-25)."""


class TokenTable(msgspec.Struct, frozen=True, dict=True):
    """What each id adds to the text, and how tools are called; travels to the checker's process."""

    tokens: list[bytes]
    """By id; empty where no grammar may use the id."""
    eos_token_ids: list[int]
    marker_ids: list[int]
    """Ids of the markers of tool calls, where the model has them as tokens of their own."""
    tool_format: ToolFormat = "hermes"
    """What the model writes between them."""

    @cached_property
    def num_words(self) -> int:
        """Length of a mask in 32-bit words."""
        return -(-len(self.tokens) // 32)

    @cached_property
    def usable_words(self) -> np.ndarray:
        """The ids that grammars may use, markers left out: `[num_words]` uint32, bit i of word w for id 32 w + i."""
        return self._words(without=frozenset(self.marker_ids))

    @cached_property
    def usable_words_with_markers(self) -> np.ndarray:
        """The same with the markers."""
        return self._words(without=frozenset())

    @cached_property
    def fence_ids(self) -> tuple[int, ...]:
        """The ids that begin a Markdown fence, which may be indented."""
        return tuple(index for index, token in enumerate(self.tokens) if token.lstrip(b" ").startswith(b"```"))

    def _words(self, *, without: frozenset[int]) -> np.ndarray:
        usable = np.zeros(32 * self.num_words, bool)
        usable[: len(self.tokens)] = [bool(token) and index not in without for index, token in enumerate(self.tokens)]
        usable[self.eos_token_ids] = True
        return np.packbits(usable, bitorder="little").view(np.uint32)


def token_table(tokenizer: Tokenizer) -> TokenTable:
    """Read a tokenizer's vocabulary."""
    markers = [tokenizer.id_of_added(text) for text in (TOOL_CALL_BEGIN, TOOL_CALL_END)]
    marker_ids = [token_id for token_id in markers if token_id is not None]
    hidden = tokenizer.added_token_ids.difference(marker_ids) | tokenizer.eos_token_ids
    tokens = [b"" if index in hidden else tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)]
    tool_format = tokenizer.chat_markers.tool_format or "hermes"
    return TokenTable(tokens, sorted(tokenizer.eos_token_ids), marker_ids, tool_format)


def matcher_vocabulary(table: TokenTable) -> LLTokenizer:
    """Build the matcher's own form of a vocabulary; takes half a second for 152,000 tokens and holds the GIL."""
    source = cast("TokenizerWrapper", _TokenSource(table))
    return LLTokenizer(source, n_vocab=len(table.tokens), eos_token=list(table.eos_token_ids), slices=_SLICES)


class _TokenSource:
    """The attributes by which `LLTokenizer` knows a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        self.eos_token_id = table.eos_token_ids[0]
        self.tokens = table.tokens
        self.special_token_ids: list[int] = []

    def __call__(self, _text: str) -> list[int]:
        """Return nothing: grammars are compiled with `no_forcing`, so that the model chooses how a text is cut."""
        return []
