"""A decoder that embeds by its last token, in the worker's process: text to ids, ids to vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwenstack.core.embedding import EmbeddingInput, InputType
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.embedding import TextEmbedder, load_text_embedder
from qwenstack.retrieval.wire import LoadDecoder
from qwenstack.tokenizer import Tokenizer


class DecoderModel:
    """Counts, cuts and embeds texts as the model's own tokenizer writes them, its end of a text included."""

    def __init__(self, embedder: TextEmbedder, tokenizer: Tokenizer) -> None:
        """Use a loaded model."""
        self._embedder = embedder
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, config: EngineConfig) -> DecoderModel:
        """Load a model.

        Raises:
            QwenStackError: as `load_text_embedder`.
        """
        return cls(*load_text_embedder(config))

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], input_type: InputType, *, truncate: bool
    ) -> list[EmbeddingInput]:
        """Encode each text; a text that is cut has its end mark all the same. Token ids stay as they are."""
        return [self._prepare(given, input_type, truncate=truncate) for given in inputs]

    def embed(self, inputs: Sequence[EmbeddingInput]) -> np.ndarray:
        """Return the vectors of token ids, `[B, D]` float32."""
        return self._embedder.embed([_ids_of(each) for each in inputs])

    def _prepare(self, given: str | Sequence[int], input_type: InputType, *, truncate: bool) -> EmbeddingInput:
        end = self._tokenizer.text_end_ids if isinstance(given, str) else ()
        ids = self._tokenizer.encode(given, param="input") if isinstance(given, str) else given
        room = self._embedder.max_tokens - len(end)
        is_cut = truncate and len(ids) > room
        content = (*(ids[:room] if is_cut else ids), *end)
        return EmbeddingInput(content=content, num_tokens=len(content), input_type=input_type, is_cut=is_cut)


def engine_config(load: LoadDecoder) -> EngineConfig:
    """Return how the engine's parts are to run a model.

    Raises:
        ConfigError: a value is outside its range.
    """
    return EngineConfig(
        model_path=Path(load.path),
        model_name=load.name,
        num_threads=load.num_threads,
        max_model_len=load.max_tokens,
    )


def _ids_of(given: EmbeddingInput) -> tuple[int, ...]:
    assert not isinstance(given.content, str), "prepared by this model"
    return given.content
