"""Vectors of texts by a decoder that was trained for it: the last token's state behind the final norm, of length one.

Source: Zhang et al. 2025, Qwen3 Embedding, arXiv:2506.05176, section 3; the model card of Qwen3-Embedding-0.6B.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.protocols import EmbedderCard, ModelCard
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.loading import (
    PACKING_OVERHEAD,
    WORKING_BYTES,
    describe_shape,
    kernels_for,
    kv_dtype_of,
    load_tokenizer,
    plan_cache,
    precision_policy,
)
from qwenstack.engine.memory import available_memory_bytes
from qwenstack.engine.scheduler import blocks_for
from qwenstack.hub.checkpoint import Checkpoint, open_checkpoint
from qwenstack.models import (
    Decoder,
    KVCache,
    ModelConfig,
    PackedBatch,
    WeightReader,
    kv_bytes_per_token,
    read_config,
)
from qwenstack.tokenizer import Tokenizer

MIN_DIMENSIONS = 32
"""The fewest that Qwen3-Embedding was trained to be shortened to, says its model card."""
DEFAULT_MAX_TOKENS = 8192
"""Of one text where nobody says: keys and values of 32,768 take 3.8 GB in the smallest of these models."""


class TextEmbedder:
    """Embeds token ids with one decoder; for one thread at a time."""

    def __init__(
        self, decoder: Decoder, *, max_tokens: int, kv_dtype: np.dtype, step_tokens: int = 512, block_size: int = 16
    ) -> None:
        """Use a loaded decoder, whose head is of no use here.

        Args:
            decoder: what computes.
            max_tokens: of one text.
            kv_dtype: type of keys and values.
            step_tokens: computed at a time; a longer text takes several steps.
            block_size: tokens that a block of keys and values holds.
        """
        self.max_tokens = max_tokens
        self.dimensions = decoder.config.hidden_size
        self._decoder = decoder
        self._step_tokens = step_tokens
        num_blocks = max(blocks_for(max_tokens, block_size), step_tokens)  # one long text, or each token a text
        self._cache = KVCache.allocate(decoder.config, num_blocks=num_blocks, block_size=block_size, dtype=kv_dtype)

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return a vector of length one for each text, `[B, D]` float32.

        Each text has 1 to `max_tokens` ids. Its vector does not depend on the others, bit for bit.
        """
        vectors_BD = np.empty((len(texts), self.dimensions), np.float32)
        first = 0
        for group in _groups(texts, self._step_tokens):
            hidden_GD = self._decoder.final_norm(self._last_rows(group))
            for offset, hidden_D in enumerate(hidden_GD):
                # In float64 and row by row: the sum is the same whatever stands in the other rows.
                length = np.sqrt(np.square(hidden_D.astype(np.float64)).sum())
                vectors_BD[first + offset] = hidden_D / max(length, 1e-12)
            first += len(group)
        if not np.isfinite(vectors_BD).all():
            raise ArithmeticError("the model gave vectors that are not numbers")
        return vectors_BD

    def _last_rows(self, group: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the state of the last token of each text, `[B, D]`: short texts in one step, or one long one."""
        rows_TD = np.empty((0, self.dimensions), np.float32)
        longest = max(map(len, group))
        num_steps = -(-longest // self._step_tokens)
        ends = np.zeros(1, np.int64)
        for step in range(num_steps):
            first = step * self._step_tokens
            batch = _pack(group, first, first + self._step_tokens, self._cache.block_size)
            rows_TD = self._decoder.forward(batch, self._cache)
            ends = batch.query_start[1:] - 1
        return rows_TD[ends]


def load_text_embedder(config: EngineConfig) -> tuple[TextEmbedder, Tokenizer]:
    """Open a model that embeds and make it ready, with its tokenizer.

    Raises:
        CheckpointError: the model is missing, damaged or of a kind that is not read here.
        CapacityError: it does not fit into memory.
        ConfigError: it is no model that embeds by its last token, or a setting does not suit it.
    """
    checkpoint = open_checkpoint(config.model_path)
    model_config = read_embedding_config(checkpoint)
    reader = WeightReader(checkpoint, model_config, config.weight_format)
    dtype = kv_dtype_of(config, reader)
    cache = plan_cache(
        dataclasses.replace(config, max_model_len=longest_text(config, model_config)),
        trained_len=model_config.context_length,
        yarn_from=None,
        bytes_per_token=kv_bytes_per_token(model_config, dtype),
        weight_bytes=int(reader.num_bytes * PACKING_OVERHEAD) + reader.conversion_bytes + WORKING_BYTES,
        available_bytes=available_memory_bytes(),
    )
    precision = precision_policy(config, num_parameters=model_config.num_parameters)
    decoder = Decoder(model_config, reader, kernels_for(config, precision), has_head=False)
    embedder = TextEmbedder(
        decoder, max_tokens=cache.max_model_len, kv_dtype=dtype, step_tokens=config.max_num_batched_tokens
    )
    return embedder, load_tokenizer(checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderDescription:
    """What can be said of a model without loading it."""

    card: EmbedderCard
    vocab_size: int
    """Token ids lie in `range(vocab_size)`."""


def describe_embedder(config: EngineConfig) -> EmbedderDescription:
    """Read what a model that embeds is from its files, weights aside.

    Raises:
        CheckpointError: the model is missing, damaged or of a kind that is not read here.
        ConfigError: it is no model that embeds by its last token, or the length asked for is beyond it.
    """
    checkpoint = open_checkpoint(config.model_path)
    model_config = read_embedding_config(checkpoint)
    reader = WeightReader(checkpoint, model_config, config.weight_format)
    if config.max_model_len is not None and config.max_model_len > model_config.context_length:
        raise ConfigError(
            f"`embedding.max_tokens` is {config.max_model_len}; {config.model_name} was trained for "
            f"{model_config.context_length}. Ask for at most that."
        )
    return EmbedderDescription(
        card=EmbedderCard(
            id=config.model_name,
            created=int(time.time()),
            dimensions=model_config.hidden_size,
            min_dimensions=min(MIN_DIMENSIONS, model_config.hidden_size),
            max_tokens=longest_text(config, model_config),
            input_types=("passage",),  # an instruction is part of the text: "Instruct: ...\nQuery: ..."
            takes_token_ids=True,
            num_parameters=model_config.num_parameters,
            weight_format=reader.prevailing_type.name,
            shape=describe_shape(model_config, checkpoint, reader),
        ),
        vocab_size=model_config.vocab_size,
    )


def read_embedding_config(checkpoint: Checkpoint) -> ModelConfig:
    """Return the shape of a model that embeds.

    Raises:
        ModelFormatError: the metadata are incomplete, or ask for what the decoder does not compute.
        ConfigError: it is of another family than Qwen3, whose models alone embed this way.
    """
    model_config = read_config(checkpoint)
    if model_config.model_type != "qwen3":
        raise ConfigError(
            f"{str(checkpoint.path)!r} is a model of type {model_config.model_type!r}; texts are embedded with "
            "Qwen3-Embedding, whose type is 'qwen3', or with 'multilingual-e5-small'."
        )
    return model_config


def check_embedded_ids(token_ids: Sequence[int], card: ModelCard) -> None:
    """Refuse what a model cannot embed.

    Raises:
        RequestError: there is nothing, too much, or an id outside the vocabulary.
    """
    if not 1 <= len(token_ids) <= card.max_model_len:
        text = f"The prompt has {len(token_ids)} tokens; {card.id} embeds 1 to {card.max_model_len}."
        raise RequestError(text, param="prompt", code="invalid_value")
    if min(token_ids) < 0 or max(token_ids) >= card.vocab_size:
        text = f"The prompt has a token id outside the vocabulary; ids lie between 0 and {card.vocab_size - 1}."
        raise RequestError(text, param="prompt", code="invalid_value")


def longest_text(config: EngineConfig, model_config: ModelConfig) -> int:
    """Return how many tokens a text may have: as asked for, else 8,192 at most."""
    return config.max_model_len or min(model_config.context_length, DEFAULT_MAX_TOKENS)


def _groups(texts: Sequence[Sequence[int]], step_tokens: int) -> Iterator[Sequence[Sequence[int]]]:
    """Yield runs of texts that one step computes, in order; a text that is longer than a step is alone."""
    first = num_tokens = 0
    for index, text in enumerate(texts):
        if index > first and num_tokens + len(text) > step_tokens:
            yield texts[first:index]
            first, num_tokens = index, 0
        num_tokens += len(text)
    if first < len(texts):
        yield texts[first:]


def _pack(group: Sequence[Sequence[int]], first: int, stop: int, block_size: int) -> PackedBatch:
    """Pack the tokens `first … stop - 1` of each text; each text has blocks of its own, from its first token on."""
    pieces = [text[first:stop] for text in group]
    counts = np.array([len(piece) for piece in pieces], np.int32)
    num_blocks = [blocks_for(first + len(piece), block_size) for piece in pieces]
    block_table = np.zeros((len(group), max(num_blocks)), np.int32)
    positions = np.concatenate([np.arange(first, first + count, dtype=np.int64) for count in counts])
    slot_mapping = np.empty_like(positions)
    query_start = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
    next_block = 0
    for row, size in enumerate(num_blocks):
        block_table[row, :size] = np.arange(next_block, next_block + size)
        own = slice(int(query_start[row]), int(query_start[row + 1]))
        slot_mapping[own] = next_block * block_size + positions[own]
        next_block += size
    return PackedBatch(
        token_ids=np.array([token_id for piece in pieces for token_id in piece], np.int64),
        positions=positions,
        slot_mapping=slot_mapping,
        query_start=query_start,
        kv_len=first + counts,
        block_table=block_table,
    )
