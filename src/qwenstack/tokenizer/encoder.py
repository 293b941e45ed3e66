"""From text to ids: normalise, cut into pieces, merge bytes. The merging itself is the Rust library `tokenizers`.

An encoder knows words only. It cannot produce an added token such as `<|im_start|>`, whatever the text says;
`tokenizer.py` puts those in where they belong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from qwenstack.core.errors import ModelFormatError, RequestError

QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2, Qwen2.5 and Qwen3: GPT-4's pattern, with one digit a piece."""


def _set_up_qwen2(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _set_up_smollm(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


PRE_TOKENIZERS: Mapping[str, Callable[[tokenizers.Tokenizer], None]] = {
    "qwen2": _set_up_qwen2,
    "smollm": _set_up_smollm,
}
"""By GGUF's `tokenizer.ggml.pre`."""


class Encoder:
    """Byte-level BPE over words only.

    A byte without a token of its own is left out, as transformers does; SmolLM2's vocabulary lacks 21 rare ones, such
    as U+0004.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Wrap a `tokenizers` object that has no added tokens."""
        self._tokenizer = tokenizer

    @classmethod
    def from_merges(cls, id_of_word: Mapping[str, int], merges: Sequence[str], *, pre: str) -> Encoder:
        """Build an encoder from GGUF's lists.

        Args:
            id_of_word: the words in byte-level letters; added tokens are not among them.
            merges: `left right`, most important first.
            pre: a key of `PRE_TOKENIZERS`.

        Raises:
            ModelFormatError: a merge is not a pair of words.
        """
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        try:
            tokenizer = tokenizers.Tokenizer(models.BPE(vocab=dict(id_of_word), merges=pairs))
        except Exception as error:  # the library raises bare `Exception` for a merge outside the vocabulary
            raise ModelFormatError(f"The tokenizer's merges do not fit its vocabulary: {error}.") from error
        PRE_TOKENIZERS[pre](tokenizer)
        return cls(tokenizer)

    @classmethod
    def from_tokenizer_json(cls, description: Mapping[str, object], id_of_word: Mapping[str, int]) -> Encoder:
        """Build an encoder from a parsed `tokenizer.json`, taking only its normalizer, pre-tokenizer and merges.

        Raises:
            ModelFormatError: the library cannot read it, or a merge makes what is not among the words.
        """
        # No unknown token either: it might be `<|endoftext|>`, and then a strange character would end the text.
        model = {**cast("Mapping[str, object]", description["model"]), "vocab": id_of_word, "unk_token": None}
        nothing_around = dict.fromkeys(("post_processor", "truncation", "padding"))
        words_only: dict[str, object] = {**description, **nothing_around, "model": model, "added_tokens": []}
        try:
            return cls(tokenizers.Tokenizer.from_str(json.dumps(words_only)))
        except Exception as error:  # the library raises bare `Exception`
            raise ModelFormatError(f"`tokenizer.json` cannot be read: {error}.") from error

    def encode(self, text: str) -> list[int]:
        """Turn plain text, which is valid Unicode, into ids.

        Raises:
            ModelFormatError: the pre-tokenizer that the model's file brought fails on the text.
        """
        try:
            # The library keeps Python's lock while it encodes one text, and lets it go for a batch.
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
            return encoding.ids
        except Exception as error:  # the library raises bare `Exception`, as for a pattern that backtracks for ever
            raise ModelFormatError(
                f"The model's tokenizer fails on a text of {len(text)} characters: {error}."
            ) from error


def check_is_unicode(text: str, *, param: str) -> None:
    """Refuse half of a UTF-16 pair.

    Raises:
        RequestError: the text has a lone surrogate; says where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"`{param}` has half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}, "
            "which is not valid Unicode. Send the whole character, or leave it out.",
            param=param,
            code="invalid_unicode",
        ) from None
