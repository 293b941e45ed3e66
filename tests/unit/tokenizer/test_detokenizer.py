"""Streaming equals decoding at once, whatever the ids."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenstack.tokenizer import StreamingDetokenizer, Tokenizer


class Bytes:
    """A vocabulary in which each id is a piece of bytes of one's own choice."""

    def __init__(self, pieces: list[bytes], special: frozenset[int] = frozenset()) -> None:
        self.pieces = pieces
        self.special = special

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special


@given(st.lists(st.binary(max_size=4)))
@example([b"\xf0\x9f", b"\x91", b"\x8d", b"\xe4\xbd"])
@example([b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"])
@settings(deadline=None)
def test_pieces_together_equal_all_bytes_decoded_at_once(pieces: list[bytes]) -> None:
    detokenizer = StreamingDetokenizer(Bytes(pieces))
    text = "".join(detokenizer.push(token_id) for token_id in range(len(pieces))) + detokenizer.finish()
    assert text == b"".join(pieces).decode("utf-8", "replace")


def test_a_character_is_released_with_its_last_byte() -> None:
    detokenizer = StreamingDetokenizer(Bytes([b"a\xe4", b"\xbd", b"\xa0b"]))
    assert [detokenizer.push(0), detokenizer.push(1), detokenizer.push(2), detokenizer.finish()] == ["a", "", "你b", ""]


def test_an_answer_that_ends_inside_a_character_ends_with_a_replacement() -> None:
    detokenizer = StreamingDetokenizer(Bytes([b"ok\xf0\x9f\x91"]))
    assert detokenizer.push(0) == "ok"
    assert detokenizer.finish() == "\ufffd"


def test_control_tokens_are_left_out_unless_asked_for() -> None:
    vocabulary = Bytes([b"a", b"<|im_end|>", b"b"], special=frozenset({1}))
    for skip, expected in ((True, "ab"), (False, "a<|im_end|>b")):
        detokenizer = StreamingDetokenizer(vocabulary, skip_special_tokens=skip)
        assert "".join(map(detokenizer.push, range(3))) == expected


@given(st.data(), st.booleans())
@settings(deadline=None)
def test_streaming_equals_decode(tiny: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(-2, tiny.vocab_size + 20), max_size=30))
    detokenizer = StreamingDetokenizer(tiny, skip_special_tokens=skip)
    text = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
    assert text == tiny.decode(ids, skip_special_tokens=skip)
