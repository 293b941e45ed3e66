"""Which sequences the next step runs, and how many tokens of each: a decision as a value, without doing anything.

Decoding goes first, one token a sequence, so that nobody's stream stalls; what is left of the token budget reads
prompts, in order of arrival and in pieces. When blocks run out, the youngest sequence gives its blocks back and is
computed again later.
Source: chunked prefill as in Agrawal et al. 2024, arXiv:2403.02310; preemption by recompute as in Kwon et al. 2023,
arXiv:2309.06180, section 4.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceView:
    """What the plan needs to know of one sequence."""

    key: int
    """Names the sequence; smaller arrived earlier."""
    num_tokens: int
    """Prompt and answer so far."""
    num_computed_tokens: int
    """How many of them have keys and values."""
    num_blocks: int
    """Blocks it owns."""

    @property
    def is_prefill(self) -> bool:
        """Whether more than the newest token is still to be computed."""
        return self.num_tokens - self.num_computed_tokens > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens of one sequence that the step computes."""

    key: int
    num_tokens: int
    num_new_blocks: int
    """Blocks it must be given first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One step: first take from the preempted, then give to the chunks, then run them."""

    chunks: tuple[Chunk, ...] = ()
    admitted: tuple[int, ...] = ()
    """Keys that leave the waiting queue, in its order."""
    preempted: tuple[int, ...] = ()
    """Keys that lose all blocks and go back to the head of the queue."""


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold this many tokens."""
    return -(-num_tokens // block_size)


def plan(
    running: Sequence[SequenceView],
    waiting: Sequence[SequenceView],
    *,
    num_free_blocks: int,
    block_size: int,
    token_budget: int,
    max_num_seqs: int,
) -> Plan:
    """Pick the sequences that the next step runs.

    `running` and `waiting` are in order of arrival. The result never exceeds the token budget, the free blocks (with
    those of the preempted) or `max_num_seqs`, and runs at least the oldest sequence if any block can be had.
    """
    chunks: list[Chunk] = []
    preempted: list[int] = []
    free = num_free_blocks
    alive = sorted(running, key=lambda view: view.key)
    for view in sorted(alive, key=lambda view: (view.is_prefill, view.key)):
        if token_budget == 0:
            break
        if view.key in preempted:
            continue
        count = min(view.num_tokens - view.num_computed_tokens, token_budget)
        needed = blocks_for(view.num_computed_tokens + count, block_size) - view.num_blocks
        while needed > free:
            victim = _youngest(alive, chunks, preempted)
            if victim is None or victim.key < view.key:
                break
            preempted.append(victim.key)
            free += victim.num_blocks
        if view.key in preempted or needed > free:
            continue
        chunks.append(Chunk(key=view.key, num_tokens=count, num_new_blocks=needed))
        free -= needed
        token_budget -= count
    admitted: list[int] = []
    seats = max_num_seqs - (len(running) - len(preempted))
    if not preempted:
        free -= _promised_blocks(alive, chunks, block_size)
        for view in waiting:
            whole = blocks_for(view.num_tokens + 1, block_size)
            if token_budget == 0 or len(admitted) == seats or whole > free:
                break
            count = min(view.num_tokens, token_budget)
            admitted.append(view.key)
            chunks.append(Chunk(key=view.key, num_tokens=count, num_new_blocks=blocks_for(count, block_size)))
            free -= whole
            token_budget -= count
    return Plan(chunks=tuple(chunks), admitted=tuple(admitted), preempted=tuple(preempted))


def _promised_blocks(alive: Sequence[SequenceView], chunks: Sequence[Chunk], block_size: int) -> int:
    """Return the blocks that prompts still being read will need: to admit on them would lead to preemption."""
    given = {chunk.key: chunk.num_new_blocks for chunk in chunks}
    return sum(
        max(blocks_for(view.num_tokens + 1, block_size) - view.num_blocks - given.get(view.key, 0), 0)
        for view in alive
        if view.is_prefill
    )


def _youngest(alive: Sequence[SequenceView], chunks: Sequence[Chunk], preempted: Sequence[int]) -> SequenceView | None:
    """Return the latest arrival whose blocks can still be taken in this step."""
    planned = {chunk.key for chunk in chunks}
    for view in reversed(alive):
        if view.key not in planned and view.key not in preempted and view.num_blocks:
            return view
    return None
