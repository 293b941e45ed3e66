"""What one forward pass works on: the new tokens of many sequences in a row, and where their keys and values live."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwenstack.models.config import ModelConfig
from qwenstack.models.lora import LoraAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """T new tokens of B sequences, prompts and single decoded tokens alike.

    Sequence b owns the tokens `query_start[b]:query_start[b+1]`; they are the last ones of its `kv_len[b]` positions.
    """

    token_ids: np.ndarray
    """`[T]` int64."""
    positions: np.ndarray
    """`[T]` int64, from 0 in each sequence."""
    slot_mapping: np.ndarray
    """`[T]` int64: where each token's key and value go, block · block_size + offset."""
    query_start: np.ndarray
    """`[B+1]` int32."""
    kv_len: np.ndarray
    """`[B]` int32."""
    block_table: np.ndarray
    """`[B, C]` int32: each sequence's blocks in order, padded with 0."""
    adapters: tuple[LoraAdapter | None, ...] = ()
    """B adapters, None for sequences that have none; empty: no sequence has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCache:
    """Keys and values of all layers, in blocks that any sequence may own."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    """For each layer keys and values `[C, K, block_size, H]`; the forward pass writes, the engine owns."""
    block_size: int
    num_blocks: int

    @classmethod
    def allocate(cls, config: ModelConfig, *, num_blocks: int, block_size: int, dtype: np.dtype) -> KVCache:
        """Reserve the blocks; the system gives memory only to those that are written."""
        shape = (num_blocks, config.num_key_value_heads, block_size, config.head_dim)
        layers = tuple((np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in range(config.num_hidden_layers))
        return cls(layers=layers, block_size=block_size, num_blocks=num_blocks)


def kv_bytes_per_token(config: ModelConfig, dtype: np.dtype) -> int:
    """Return the bytes that one token's keys and values take in all layers."""
    return 2 * config.num_hidden_layers * config.kv_size * dtype.itemsize
