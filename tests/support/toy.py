"""A model whose next token is a known function of all tokens before it, read back from the KV cache block by block.

A token in the wrong slot, a block with two owners or a position off by one changes everything that follows, so the
engine can be tested exactly, without weights and in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from qwenstack.core.protocols import ModelCard
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.loading import LoadedModel
from qwenstack.engine.precision import PrecisionPolicy
from qwenstack.models import KVCache, PackedBatch
from qwenstack.tokenizer import ChatMarkers

VOCABULARY = 64
EOS = 63


_LETTERS = [bytes([byte]) for byte in b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
_BROKEN_CHARACTER = ["中".encode()[at : at + 1] for at in range(3)]
_PIECES = (*_LETTERS, *_BROKEN_CHARACTER, "好".encode(), b"\xff", b"0", b"1", b"2", b"3", b"")


class ToyTokenizer:
    """Token i is one letter, or a byte of a longer character; the last id ends the text."""

    vocab_size = VOCABULARY
    eos_token_ids = frozenset({EOS})
    added_token_ids = frozenset({EOS})
    bos_token_id = None
    chat_markers = ChatMarkers()

    def token_bytes(self, token_id: int) -> bytes:
        return _PIECES[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id == EOS

    def id_of_added(self, text: str) -> int | None:
        return None

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(self.token_bytes(token_id) for token_id in token_ids).decode(errors="replace")

    def encode(self, text: str) -> list[int]:
        return [_PIECES.index(character.encode()) for character in text]


_ROWS = np.random.default_rng(3).normal(size=(997, VOCABULARY)).astype(np.float32)


def toy_logits(tokens: Sequence[int]) -> np.ndarray:
    """Return the logits `[V]` after these tokens."""
    state = 17
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return _ROWS[state % len(_ROWS)]


class ToyDecoder:
    """Keeps token ids in the key cache and looks at nothing else."""

    def forward(self, batch: PackedBatch, kv_cache: KVCache) -> np.ndarray:
        keys, _ = kv_cache.layers[0]
        flat = keys.reshape(-1)
        flat[batch.slot_mapping] = batch.token_ids
        rows: list[np.ndarray] = []
        for row, (start, end) in enumerate(zip(batch.query_start[:-1], batch.query_start[1:], strict=True)):
            length = int(batch.kv_len[row])
            positions = np.arange(length)
            slots = batch.block_table[row, positions // kv_cache.block_size] * kv_cache.block_size
            tokens = flat[slots + positions % kv_cache.block_size].astype(int)
            assert batch.positions[start:end].tolist() == list(range(length - (end - start), length))
            rows.extend(toy_logits(tokens[: length - (end - start) + at + 1]) for at in range(end - start))
        return np.stack(rows)

    def logits(
        self, x_RD: np.ndarray, activation_bits: int | None = None, *, out_RV: np.ndarray | None = None
    ) -> np.ndarray:
        if out_RV is None:
            return x_RD
        out_RV[:] = x_RD
        return out_RV


def toy_model(*, num_blocks: int = 64, max_model_len: int = 128, **options: Any) -> LoadedModel:
    """Return a model that an `Engine` can run."""
    config = EngineConfig(model_path=Path("toy"), model_name="toy", **{"block_size": 8, "max_num_seqs": 8, **options})
    keys = np.full((num_blocks, 1, config.block_size, 1), -1, np.float32)
    return LoadedModel(
        config=config,
        card=ModelCard(
            id="toy",
            created=0,
            max_model_len=max_model_len,
            vocab_size=VOCABULARY,
            num_parameters=0,
            weight_format="F32",
        ),
        decoder=cast("Any", ToyDecoder()),
        weight_bytes=0,
        kv_cache=KVCache(layers=((keys, keys),), block_size=config.block_size, num_blocks=num_blocks),
        tokenizer=cast("Any", ToyTokenizer()),
        precision=PrecisionPolicy(activation_bits=8),
    )
