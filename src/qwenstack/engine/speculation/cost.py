"""Whether a draft pays: what one more row costs a step against the chance that it saves a whole one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qwenstack.core.errors import ConfigError
from qwenstack.models import Decoder, KVCache, PackedBatch

_MEASURED_ROWS = 8
"""The slope is measured up to here: the smallest KV block holds so many tokens."""
_LEAST_PER_ROW, _MOST_PER_ROW = 0.02, 1.0
"""What noise may make of a measurement: a GPU's rows are nearly free, and no row costs more than a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """The time of a decoding step of t rows, in steps of one row: `1 + per_row * (t - 1)`.

    Raises:
        ConfigError: `per_row` is outside its range.
    """

    per_row: float = 0.3
    """Qwen2.5-Coder-0.5B on two cores with AVX2: `benches/speculation.py --cost`, 2026-11-25; 0.07 with AVX-512 VNNI,
    from 47 tokens/s in decoding and 657 in prefill."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 < self.per_row <= 1.0:
            raise ConfigError(
                f"`per_row` is {self.per_row!r}; a row costs more than nothing and at most 1, a whole step. "
                "Measure it with `python benches/speculation.py --cost`."
            )

    def of(self, num_rows: int) -> float:
        """Return the time of a step."""
        return 1.0 + self.per_row * (num_rows - 1)

    def draft_length(self, chances: Iterable[float], *, num_running: int, limit: int) -> int:
        """Return how many drafts give the most tokens for the time of the step.

        A draft is worth its row while its chance to be kept, divided by the row's cost, is above the tokens for the
        time that the step gives without it. With many sequences running that rate is high, and only the surest pay.

        Args:
            chances: for each draft in order, how likely it is right if those before it are.
            num_running: sequences in the step, this one among them.
            limit: most drafts.
        """
        tokens, cost, kept, length = float(num_running), self.of(num_running), 1.0, 0
        for chance in chances:
            kept *= chance
            if length >= limit or kept * cost <= tokens * self.per_row:
                break
            tokens += kept
            cost += self.per_row
            length += 1
        return length


def measure_step_cost(decoder: Decoder, kv_cache: KVCache, *, repeats: int = 3) -> StepCost:
    """Time steps of one row and of eight on this machine; a quarter of a second for half a billion parameters.

    Writes to the first KV block, which must be nobody's. The least time of each counts: what else the machine does
    only adds.
    """
    seconds = {rows: float("inf") for rows in (1, _MEASURED_ROWS)}
    for rows in [*seconds] * repeats:
        start = time.perf_counter()
        decoder.logits(decoder.forward(_first_tokens(rows), kv_cache))
        seconds[rows] = min(seconds[rows], time.perf_counter() - start)
    per_row = (seconds[_MEASURED_ROWS] / seconds[1] - 1.0) / (_MEASURED_ROWS - 1)
    return StepCost(per_row=min(max(per_row, _LEAST_PER_ROW), _MOST_PER_ROW))


def _first_tokens(count: int) -> PackedBatch:
    """Return a batch of one sequence that begins at the first slot of the cache."""
    positions = np.arange(count, dtype=np.int64)
    return PackedBatch(
        token_ids=positions,
        positions=positions,
        slot_mapping=positions,
        query_start=np.array([0, count], np.int32),
        kv_len=np.array([count], np.int32),
        block_table=np.zeros((1, 1), np.int32),
    )
