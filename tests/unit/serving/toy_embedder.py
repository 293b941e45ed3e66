"""A model that makes vectors which a test can work out: how often each of eight letters is in a text."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qwenstack.core.embedding import EmbeddingInput, InputType, Vector
from qwenstack.core.errors import RequestError
from qwenstack.core.protocols import EmbedderCard

LETTERS = "abcdefgh"
VOCAB_SIZE = 0xD800
"""Code points below the surrogates."""
CARD = EmbedderCard(
    id="toy/letters",
    created=1_700_000_000,
    dimensions=len(LETTERS),
    min_dimensions=4,
    max_tokens=16,
    input_types=("query", "passage"),
    takes_token_ids=True,
    num_parameters=8,
    weight_format="F32",
)


def letters_of(text: str) -> list[float]:
    """Count by the book, in float64."""
    counts = [text.count(letter) + 1.0 for letter in LETTERS]
    length = math.sqrt(sum(count * count for count in counts))
    return [count / length for count in counts]


@dataclass
class ToyEmbedder:
    """One token a character; token ids are the characters' code points."""

    card: EmbedderCard = CARD
    step_s: float = 0.0
    error: Exception | None = None
    seen: list[EmbeddingInput] = field(default_factory=list)
    num_open: int = 0
    is_loaded: bool = False
    may_read: asyncio.Event | None = None
    """Texts are read only when it is set, where there is one."""
    num_read: int = 0
    """Requests whose texts were read, or are."""

    async def prepare(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        input_type: InputType | None = None,
        truncate: bool = False,
        tenant: str = "",
    ) -> list[EmbeddingInput]:
        self.num_read += 1
        if self.may_read is not None:
            await self.may_read.wait()
        texts = [given if isinstance(given, str) else _text_of(given) for given in inputs]
        read = [EmbeddingInput(content=text, num_tokens=len(text), input_type=input_type or "query") for text in texts]
        limit = self.card.max_tokens
        return [
            replace(each, content=each.content[:limit], num_tokens=limit, is_cut=True)
            if truncate and each.num_tokens > limit
            else each
            for each in read
        ]

    async def embed(self, inputs: Sequence[EmbeddingInput], *, tenant: str = "") -> list[Vector]:
        self.num_open += 1
        self.is_loaded = True
        try:
            await asyncio.sleep(self.step_s)
            if self.error is not None:
                raise self.error
            self.seen.extend(inputs)
            return [array("f", letters_of(str(each.content))) for each in inputs]
        finally:
            self.num_open -= 1

    async def close(self) -> None:
        """There is nothing to close."""


def _text_of(token_ids: Sequence[int]) -> str:
    for token_id in token_ids:
        if not 0 <= token_id < VOCAB_SIZE:
            raise RequestError(f"`input` has token id {token_id}.", param="input", code="invalid_value")
    return "".join(map(chr, token_ids))
