"""What one forward pass works on: the new tokens of many sequences in a row, and where their keys and values live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qwenstack.kernels.kv_rows import row_width
from qwenstack.kernels.protocol import ActivationBits
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
    activation_bits: ActivationBits | None = None
    """How finely activations are rounded, for all of them; None: as the kernels were made."""
    adapters: tuple[LoraAdapter | None, ...] = ()
    """B adapters, None for sequences that have none; empty: no sequence has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCache:
    """Keys and values of all layers, in blocks that any sequence may own."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    """For each layer keys and values `[C, K, block_size, row width]`; the forward pass writes, the engine owns."""
    block_size: int
    num_blocks: int

    @classmethod
    def allocate(cls, config: ModelConfig, *, num_blocks: int, block_size: int, dtype: np.dtype) -> KVCache:
        """Reserve the blocks; the system gives memory only to those that are written."""
        shape = (num_blocks, config.num_key_value_heads, block_size, row_width(config.head_dim, dtype))
        layers = tuple((np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in range(config.num_hidden_layers))
        return cls(layers=layers, block_size=block_size, num_blocks=num_blocks)

    @property
    def dtype_name(self) -> str:
        """The type of keys and values, as users name it."""
        return "bfloat16" if (dtype := self.layers[0][0].dtype) == np.uint16 else dtype.name

    def block_bytes(self) -> int:
        """Return the bytes of one block in all layers."""
        return sum(array.nbytes for layer in self.layers for array in layer) // self.num_blocks

    def read_block(self, block: int, into: np.ndarray | None = None) -> np.ndarray:
        """Return what a block holds, layer after layer, keys before values.

        Shapes: result `[block_bytes]` uint8, which is `into` where that is given.

        Raises:
            ValueError: `into` has another shape or type.
        """
        payload = np.empty(self.block_bytes(), np.uint8) if into is None else into
        for part, stored in self._parts(payload, block):
            part[...] = stored
        return payload

    def write_block(self, block: int, payload: bytes | memoryview | np.ndarray) -> None:
        """Put back what `read_block` gave, into any block of a cache of the same shape and type.

        Raises:
            ValueError: the payload has another size.
        """
        for part, stored in self._parts(np.frombuffer(payload, np.uint8), block):
            stored[...] = part

    def _parts(self, payload: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pair the pieces of a payload with the pieces of a block that they mirror, both seen as bytes."""
        if payload.dtype != np.uint8 or payload.shape != (self.block_bytes(),):
            raise ValueError(
                f"A block has {self.block_bytes()} bytes, not {payload.dtype} of shape {list(payload.shape)}."
            )
        start = 0
        for layer in self.layers:
            for array in layer:
                stored = array[block].reshape(-1).view(np.uint8)
                yield payload[start : start + stored.size], stored
                start += stored.size


def kv_bytes_per_token(config: ModelConfig, dtype: np.dtype) -> int:
    """Return the bytes that one token's keys and values take in all layers."""
    head_bytes = row_width(config.head_dim, dtype) * dtype.itemsize
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_bytes
