"""Which sequences the next step runs, and how many tokens of each: a decision as a value, without doing anything.

Decoding goes first, one token a sequence, so that nobody's stream stalls; what is left of the token budget checks
drafts, then reads prompts in pieces. When blocks run out, the sequence of the lowest rank gives its blocks back and is
computed again later. When all seats are taken, one of a lower rank gives its seat to an earlier one of the same tenant,
and a tenant with more seats to one with fewer.
Source: chunked prefill as in Agrawal et al. 2024, arXiv:2403.02310; preemption by recompute as in Kwon et al. 2023,
arXiv:2309.06180, section 4.5; drafts as in Leviathan et al. 2023, arXiv:2211.17192.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

RESTORED_BLOCKS_PER_STEP = 64
"""Blocks read from the disk in one step: 13 MB of the default model, about 15 ms, so that others' streams go on."""


Rank = tuple[int, int]
"""Who goes before whom: the smaller. When a sequence is due (`waiting_queue.due_step`), then in order of arrival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningView:
    """What the plan needs to know of a sequence that has a seat."""

    key: int
    """Names the sequence."""
    rank: Rank
    tenant: str = ""
    num_tokens: int
    """Prompt and answer so far."""
    num_computed_tokens: int
    """How many of them have keys and values."""
    num_blocks: int
    """Blocks it holds."""
    num_own_blocks: int
    """How many of those nobody else holds, which is what preempting it gives."""
    num_stored_blocks: int = 0
    """Blocks that follow these and are to be read from the disk first."""
    num_drafts: int = 0
    """Guessed tokens that may be checked behind the last one."""

    @property
    def is_prefill(self) -> bool:
        """Whether more than the newest token is still to be computed."""
        return self.num_tokens - self.num_computed_tokens > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingView:
    """What the plan needs to know of a sequence that waits for a seat."""

    key: int
    rank: Rank
    tenant: str = ""
    num_tokens: int
    num_found_blocks: int = 0
    """Blocks of its beginning that are in memory."""
    num_idle_blocks: int = 0
    """How many of those nobody holds, so that holding them takes from the available."""
    num_stored_blocks: int = 0
    """Blocks that follow these and can be read from the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens of one sequence that the step computes."""

    key: int
    num_tokens: int
    """Without drafts."""
    num_drafts: int = 0
    num_new_blocks: int
    """Blocks it must be given first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Blocks of one sequence that the step reads from the disk."""

    key: int
    num_blocks: int
    """Each a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One step: take from the preempted, seat the admitted, give blocks, restore, run the chunks."""

    chunks: tuple[Chunk, ...] = ()
    admitted: tuple[int, ...] = ()
    """Keys that leave the waiting queue."""
    preempted: tuple[int, ...] = ()
    """Keys that lose all blocks and their seat and wait again."""
    restores: tuple[Restore, ...] = ()


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold this many tokens."""
    return -(-num_tokens // block_size)


def plan(
    running: Sequence[RunningView],
    waiting: Iterable[WaitingView],
    *,
    num_free_blocks: int,
    block_size: int,
    token_budget: int,
    max_num_seqs: int,
) -> Plan:
    """Pick the sequences that the next step runs.

    `waiting` is in the order in which they shall be admitted, and is read only as far as they can be. The result never
    exceeds the token budget, the free blocks (with those of the preempted) or `max_num_seqs`, and runs at least the
    sequence of the highest rank if any block can be had.
    """
    step = _Step(running, num_free_blocks, block_size, token_budget)
    queue = iter(waiting)
    first = next(queue, None)
    unseated = None
    if first is not None and len(running) >= max_num_seqs:
        unseated = _who_gives_way(running, first)
        if unseated is not None and not step.can_replace(unseated, first):
            unseated = None
        if unseated is not None:
            step.preempt(unseated)
    num_unseated = len(step.preempted)
    for view in sorted(running, key=lambda view: (view.is_prefill, view.rank)):
        step.run(view)
    if first is not None and len(step.preempted) == num_unseated:  # else blocks are short: admitting preempts more
        seats = max_num_seqs - (len(running) - num_unseated)
        step.admit(chain([first], queue), seats=seats, is_after_change=unseated is not None)
    return step.plan()


class _Step:
    """A plan in the making."""

    def __init__(self, running: Sequence[RunningView], num_free: int, block_size: int, token_budget: int) -> None:
        self._alive = sorted(running, key=lambda view: view.rank)
        self._num_free = num_free
        self._block_size = block_size
        self._budget = token_budget
        self._decodes_to_come = sum(not view.is_prefill for view in running)
        self._restorable = RESTORED_BLOCKS_PER_STEP
        self._chunks: dict[int, Chunk] = {}
        self._restores: dict[int, Restore] = {}
        self._admitted: list[int] = []
        self.preempted: list[int] = []

    def plan(self) -> Plan:
        return Plan(
            chunks=tuple(self._chunks.values()),
            admitted=tuple(self._admitted),
            preempted=tuple(self.preempted),
            restores=tuple(self._restores.values()),
        )

    def can_replace(self, victim: RunningView, candidate: WaitingView) -> bool:
        """Whether a seat would be of use: the candidate's whole text fits once the victim's blocks are there."""
        return self._whole(candidate, is_after_change=True) <= self._num_free + victim.num_own_blocks

    def preempt(self, view: RunningView) -> None:
        self.preempted.append(view.key)
        self._num_free += view.num_own_blocks
        self._decodes_to_come -= not view.is_prefill

    def run(self, view: RunningView) -> None:
        """Give a running sequence its tokens, at the cost of those of lower rank if blocks are short."""
        if view.key in self.preempted:
            return
        self._decodes_to_come -= not view.is_prefill
        if view.num_stored_blocks:
            self._restore(view)
            return
        count = min(view.num_tokens - view.num_computed_tokens, self._budget)
        if count == 0:
            return
        needed = self._new_blocks(view.num_computed_tokens + count, view.num_blocks)
        if not self._make_room(view, needed):
            return
        num_drafts = self._affordable_drafts(view, count)
        needed = self._new_blocks(view.num_computed_tokens + count + num_drafts, view.num_blocks)
        self._chunks[view.key] = Chunk(key=view.key, num_tokens=count, num_drafts=num_drafts, num_new_blocks=needed)
        self._num_free -= needed
        self._budget -= count + num_drafts

    def admit(self, waiting: Iterable[WaitingView], *, seats: int, is_after_change: bool) -> None:
        """Seat those who wait, in their order, as long as their whole text fits beside what was promised before."""
        self._num_free -= self._promised_blocks()
        for view in waiting:
            whole = self._whole(view, is_after_change=is_after_change)
            if self._budget == 0 or len(self._admitted) == seats or whole > self._num_free:
                break
            self._admitted.append(view.key)
            self._num_free -= whole
            if not view.num_stored_blocks:  # else the next step reads them first
                num_computed = view.num_found_blocks * self._block_size
                count = min(view.num_tokens - num_computed, self._budget)
                needed = self._new_blocks(num_computed + count, view.num_found_blocks)
                self._chunks[view.key] = Chunk(key=view.key, num_tokens=count, num_new_blocks=needed)
                self._budget -= count

    def _whole(self, view: WaitingView, *, is_after_change: bool) -> int:
        """Return the available blocks that the whole text takes.

        Found blocks that somebody holds cost nothing, unless a seat changes hands in this step: the one who leaves may
        have been the only holder.
        """
        taken = view.num_found_blocks if is_after_change else view.num_idle_blocks
        return blocks_for(view.num_tokens + 1, self._block_size) - view.num_found_blocks + taken

    def _restore(self, view: RunningView) -> None:
        count = min(view.num_stored_blocks, self._restorable)
        if count and self._make_room(view, count):
            self._restores[view.key] = Restore(key=view.key, num_blocks=count)
            self._num_free -= count
            self._restorable -= count

    def _new_blocks(self, num_tokens: int, num_blocks: int) -> int:
        return max(blocks_for(num_tokens, self._block_size) - num_blocks, 0)

    def _affordable_drafts(self, view: RunningView, count: int) -> int:
        """Return how many drafts can be checked without taking a token or a block from anybody else."""
        if view.is_prefill:
            return 0
        num_drafts = min(view.num_drafts, self._budget - count - self._decodes_to_come)
        spare_blocks = max(self._num_free - self._decodes_to_come, 0)
        room = (view.num_blocks + spare_blocks) * self._block_size - view.num_computed_tokens - count
        return max(min(num_drafts, room), 0)

    def _make_room(self, view: RunningView, needed: int) -> bool:
        while needed > self._num_free:
            victim = self._lowest_ranked()
            if victim is None or victim.rank <= view.rank:
                return False
            self.preempt(victim)
        return True

    def _lowest_ranked(self) -> RunningView | None:
        """Return the one of the lowest rank whose blocks can still be taken in this step."""
        for view in reversed(self._alive):
            taken = view.key in self._chunks or view.key in self._restores or view.key in self.preempted
            if not taken and view.num_blocks:
                return view
        return None

    def _promised_blocks(self) -> int:
        """Return the blocks that prompts still being read will need: to admit on them would lead to preemption."""
        total = 0
        for view in self._alive:
            if view.is_prefill and view.key not in self.preempted:
                chunk, restore = self._chunks.get(view.key), self._restores.get(view.key)
                given = (chunk.num_new_blocks if chunk else 0) + (restore.num_blocks if restore else 0)
                total += max(blocks_for(view.num_tokens + 1, self._block_size) - view.num_blocks - given, 0)
        return total


def _who_gives_way(running: Sequence[RunningView], candidate: WaitingView) -> RunningView | None:
    """Return who leaves a full house for a candidate: one of its tenant due later, or of a tenant with more seats.

    A tenant gives a seat only to one that has at least two fewer, so that the seat does not go back and forth.
    """
    own = [view for view in running if view.tenant == candidate.tenant]
    latest = max(own, key=lambda view: view.rank, default=None)
    if latest is not None and latest.rank > candidate.rank:
        return latest
    seats = Counter(view.tenant for view in running)
    tenant, most = max(seats.items(), key=lambda item: (item[1], item[0]))
    if most - len(own) < 2:
        return None
    return max((view for view in running if view.tenant == tenant), key=lambda view: view.rank)
