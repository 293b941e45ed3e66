"""From sequences and chunk sizes to the arrays of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from qwenstack.engine.sequence import Sequence
from qwenstack.models import PackedBatch


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes of one sequence: its next tokens, and behind them guesses of what will follow."""

    sequence: Sequence
    num_tokens: int
    drafts: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Tokens in the batch."""
        return self.num_tokens + len(self.drafts)


def build_batch(work: SequenceOf[Work], block_size: int) -> PackedBatch:
    """Pack the next tokens of each sequence, one after the other; all of them have the same precision."""
    counts = np.array([item.num_rows for item in work], np.int32)
    query_start = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
    block_table = np.zeros((len(work), max(len(item.sequence.blocks) for item in work)), np.int32)
    token_ids: list[int] = []
    positions = np.empty(int(query_start[-1]), np.int64)
    slot_mapping = np.empty_like(positions)
    kv_len = np.empty(len(work), np.int32)
    for row, item in enumerate(work):
        sequence, first = item.sequence, item.sequence.num_computed_tokens
        token_ids.extend(sequence.tokens(first, first + item.num_tokens))
        token_ids.extend(item.drafts)
        block_table[row, : len(sequence.blocks)] = sequence.blocks
        own = slice(int(query_start[row]), int(query_start[row + 1]))
        positions[own] = np.arange(first, first + item.num_rows)
        slot_mapping[own] = block_table[row, positions[own] // block_size].astype(np.int64) * block_size
        slot_mapping[own] += positions[own] % block_size
        kv_len[row] = first + item.num_rows
    return PackedBatch(
        token_ids=np.array(token_ids, np.int64),
        positions=positions,
        slot_mapping=slot_mapping,
        query_start=query_start,
        kv_len=kv_len,
        block_table=block_table,
        adapters=tuple(item.sequence.adapter for item in work),
        activation_bits=work[0].sequence.activation_bits,
    )
