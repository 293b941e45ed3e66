"""From sequences and chunk sizes to the arrays of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from qwenstack.engine.sequence import Sequence
from qwenstack.models import PackedBatch


def build_batch(work: SequenceOf[tuple[Sequence, int]], block_size: int) -> PackedBatch:
    """Pack the next tokens of each sequence, as many as its count says, one after the other."""
    counts = np.array([count for _, count in work], np.int32)
    query_start = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
    block_table = np.zeros((len(work), max(len(sequence.blocks) for sequence, _ in work)), np.int32)
    token_ids: list[int] = []
    positions = np.empty(int(query_start[-1]), np.int64)
    slot_mapping = np.empty_like(positions)
    for row, (sequence, count) in enumerate(work):
        first = sequence.num_computed_tokens
        token_ids.extend(sequence.tokens(first, first + count))
        block_table[row, : len(sequence.blocks)] = sequence.blocks
        own = slice(int(query_start[row]), int(query_start[row + 1]))
        positions[own] = np.arange(first, first + count)
        slot_mapping[own] = block_table[row, positions[own] // block_size].astype(np.int64) * block_size
        slot_mapping[own] += positions[own] % block_size
    kv_len = np.array([sequence.num_computed_tokens + count for sequence, count in work], np.int32)
    return PackedBatch(
        token_ids=np.array(token_ids, np.int64),
        positions=positions,
        slot_mapping=slot_mapping,
        query_start=query_start,
        kv_len=kv_len,
        block_table=block_table,
    )
