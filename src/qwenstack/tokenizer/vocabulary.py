"""What each token id stands for: exact bytes, and whether it is a word or a control token.

This module knows the two ways in which files write a byte-level BPE vocabulary down (GGUF metadata, `tokenizer.json`).
It does not know how text becomes ids; that is `encoder.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from qwenstack.core.errors import ModelFormatError

MAX_TOKENS = 1 << 20
"""Largest vocabulary accepted; the largest known ones have about 260,000 tokens."""

MIN_ADDED_CHARS = 2
"""A shorter one could not be told from a user's text, see `literal_guard.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token that is matched as a whole and never built by merges, such as `<|im_start|>`."""

    id: int
    text: str
    is_special: bool
    """Left out of text by `skip_special_tokens`. `<think>` and `<tool_call>` are added but not special."""

    @property
    def is_control(self) -> bool:
        """Whether it steers the conversation itself, so that not even the model's own past turns may contain it."""
        return self.is_special or (self.text.startswith("<|") and self.text.endswith("|>"))


class Vocabulary:
    """The tokens of one model, by id.

    Word tokens lie in one `bytes` object with an offset each, which takes milliseconds to build for 152,000 tokens.

    Args:
        words: the text of each id in byte-level letters; an empty string where the id is not a word.
        added: the tokens that are matched as a whole. Ids in neither are padding and stand for nothing.

    Raises:
        ModelFormatError: a word has a letter outside the byte-level alphabet, or an added token is too short, not
            Unicode, or there twice.
    """

    def __init__(self, words: Sequence[str], added: Iterable[AddedToken]) -> None:
        """Turn letters into bytes."""
        try:
            self._word_bytes = "".join(words).translate(BYTE_OF_LETTER).encode("latin-1")
        except UnicodeEncodeError:
            raise ModelFormatError(_describe_foreign_letter(words)) from None
        self._offsets = array("Q", accumulate(map(len, words), initial=0))
        self.added_tokens: dict[str, AddedToken] = {}
        """By text."""
        self._added_bytes: dict[int, bytes] = {}
        for token in added:
            _check_added_text(token.text)
            if token.text in self.added_tokens or token.id in self._added_bytes:
                raise ModelFormatError(f"The tokenizer has the added token {token.text!r} twice, or its id {token.id}.")
            self.added_tokens[token.text] = token
            self._added_bytes[token.id] = token.text.encode()
        self._special_ids = frozenset(token.id for token in self.added_tokens.values() if token.is_special)
        last_word = next((index for index in reversed(range(len(words))) if words[index]), -1)
        self.size = 1 + max(last_word, max(self._added_bytes, default=-1))
        """Ids lie in `range(size)`; the rows that a model's matrix may have beyond are padding."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of a token; nothing for an id that is padding."""
        added = self._added_bytes.get(token_id)
        if added is not None:
            return added
        if not 0 <= token_id < len(self._offsets) - 1:
            return b""
        return self._word_bytes[self._offsets[token_id] : self._offsets[token_id + 1]]

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves this id out of the text."""
        return token_id in self._special_ids

    def id_of_added(self, text: str) -> int | None:
        """Return the id of an added token."""
        token = self.added_tokens.get(text)
        return None if token is None else token.id


def letters_of_bytes() -> list[str]:
    """Return the byte-level alphabet: the letter that stands for each byte.

    Source: Radford et al. 2019, the GPT-2 release. Printable Latin-1 stands for itself, the other 68 bytes for U+0100
    onwards in order, so that a vocabulary has no spaces or control characters in it.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


# A letter that is no byte's maps to one that Latin-1 does not have, so that encoding finds it.
BYTE_OF_LETTER: Mapping[int, int] = dict.fromkeys(range(256), 0x100) | {
    ord(letter): byte for byte, letter in enumerate(letters_of_bytes())
}


def _check_added_text(text: str) -> None:
    if len(text) < MIN_ADDED_CHARS:
        raise ModelFormatError(f"The added token {text!r} is shorter than {MIN_ADDED_CHARS} characters.")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ModelFormatError(f"The added token {text!r} is not valid Unicode.")


def _describe_foreign_letter(words: Sequence[str]) -> str:
    alphabet = frozenset(letters_of_bytes())
    index = next(index for index, word in enumerate(words) if not alphabet.issuperset(word))
    return (
        f"Token {index} of the vocabulary is {words[index]!r}, which has a letter outside the byte-level alphabet. "
        "The file is damaged, or its tokenizer is not byte-level BPE."
    )
