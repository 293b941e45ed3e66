"""From ids to text while the ids arrive: a character is released when its last byte has come, never before."""

from __future__ import annotations

import codecs
from typing import Protocol


class TokenBytes(Protocol):
    """What a detokeniser asks of a vocabulary."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of a token."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, not text."""
        ...


class StreamingDetokenizer:
    """Turn one answer's ids into text, piece by piece.

    All pieces together equal the bytes of all ids decoded at once, with U+FFFD for what is not UTF-8. Each push costs
    the token's own bytes, however long the answer is.
    """

    def __init__(self, vocabulary: TokenBytes, *, skip_special_tokens: bool = True) -> None:
        """Start an answer."""
        self._vocabulary = vocabulary
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this token completes; the rest waits for the next token."""
        if self._skip_special_tokens and self._vocabulary.is_special(token_id):
            return ""
        return self._decoder.decode(self._vocabulary.token_bytes(token_id))

    @property
    def is_inside_character(self) -> bool:
        """Whether the ids so far end within a character's bytes."""
        return self._decoder.getstate()[0] != b""

    def finish(self) -> str:
        """Return what is left: U+FFFD where the answer ends inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
