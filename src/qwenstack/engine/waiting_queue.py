"""Who waits, and in which order they are let in: tenant after tenant, and of each tenant who is due first.

A level of priority counts as having arrived `STEPS_PER_LEVEL` steps earlier or later. So everybody grows older at the
same rate, whether waiting or running; nobody overtakes for ever, and the order of two sequences never changes.
Between tenants the one goes first that was served the fewest tokens; one that comes from a pause starts at least level
with the least served of those present, so that a pause is no credit. Of those that are level, the one with the fewest
seats goes first: whoever comes alone is not behind older requests of a tenant that has them all.
Source: the virtual token counter of Sheng et al. 2024, arXiv:2401.00588, section 4.1.
"""

from __future__ import annotations

import bisect
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from qwenstack.engine.scheduler import Rank
from qwenstack.engine.sequence import Sequence

STEPS_PER_LEVEL = 500
"""About 25 seconds of steps with a full batch of the default model on two cores."""
_MAX_REMEMBERED = 4096
"""Tenants whose service is remembered while they are away."""


def due_step(arrival_step: int, priority: int) -> int:
    """Return the step at which somebody of ordinary priority would have had to arrive to be as urgent."""
    return arrival_step + priority * STEPS_PER_LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One who waits."""

    key: int
    rank: Rank
    tenant: str


def order_of_admission(places: Iterable[Place], *, served: Mapping[str, int], seats: Mapping[str, int]) -> list[Place]:
    """Return who goes first: tenants in turn, the least served one first, and of each who has the smallest rank.

    Args:
        places: all who wait.
        served: tokens computed for each tenant.
        seats: how many seats each has, which decides between those served alike.
    """
    tenants: dict[str, deque[Place]] = {}
    for place in sorted(places, key=lambda place: place.rank):
        tenants.setdefault(place.tenant, deque()).append(place)
    turns = dict.fromkeys(tenants, 0)
    ordered: list[Place] = []
    while tenants:
        first = min(
            tenants,
            key=lambda name: (turns[name], served.get(name, 0), seats.get(name, 0), tenants[name][0].rank),
        )
        ordered.append(tenants[first].popleft())
        turns[first] += 1
        if not tenants[first]:
            del tenants[first]
    return ordered


class WaitingQueue:
    """Sequences that have no seat, by urgency and tenant; cheap however many they are."""

    def __init__(self) -> None:
        """Start empty."""
        self._lines: dict[tuple[int, str], deque[Sequence]] = {}
        self._by_key: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def append(self, sequence: Sequence) -> None:
        """Add one who arrives, or who was preempted and goes before all that arrived later."""
        line = self._lines.setdefault(_line_of(sequence), deque())
        if line and line[-1].key > sequence.key:
            bisect.insort(line, sequence, key=lambda other: other.key)
        else:
            line.append(sequence)
        self._by_key[sequence.key] = sequence

    def take(self, key: int) -> Sequence:
        """Take one out, who is most often at the head of its line."""
        sequence = self._by_key.pop(key)
        line = self._lines[_line_of(sequence)]
        line.remove(sequence)
        if not line:
            del self._lines[_line_of(sequence)]
        return sequence

    def first(self, count: int, *, served: Mapping[str, int], seats: Mapping[str, int]) -> list[Sequence]:
        """Return at most `count` in the order of `order_of_admission`; nobody leaves the queue.

        Answers that wait to share the prompt of another one, which is being read, are left out.
        """
        heads = [
            sequence
            for line in self._lines.values()
            for sequence in islice((one for one in line if not one.waits_for_leader), count)
        ]
        places = [Place(key=one.key, rank=one.rank, tenant=one.options.tenant) for one in heads]
        return [self._by_key[place.key] for place in order_of_admission(places, served=served, seats=seats)[:count]]

    def count_of(self, tenant: str) -> int:
        """Return how many sequences of a tenant wait."""
        return sum(len(line) for (_, owner), line in self._lines.items() if owner == tenant)


class ServedTokens:
    """How much each present tenant was served, for `order_of_admission`."""

    def __init__(self) -> None:
        """Start with nobody."""
        self._tokens: OrderedDict[str, int] = OrderedDict()
        self._present: Counter[str] = Counter()

    @property
    def by_tenant(self) -> Mapping[str, int]:
        """Tokens served; comparable between those present, not a bill."""
        return self._tokens

    def arrive(self, tenant: str) -> None:
        """Note that a tenant has one more sequence."""
        if not self._present[tenant]:
            least = min((self._tokens[other] for other in self._present if self._present[other]), default=0)
            self._tokens[tenant] = max(self._tokens.get(tenant, 0), least)
            self._tokens.move_to_end(tenant)
        self._present[tenant] += 1

    def charge(self, tenant: str, num_tokens: int) -> None:
        """Count computed tokens, of prompts and answers alike."""
        self._tokens[tenant] += num_tokens

    def leave(self, tenant: str) -> None:
        """Note that one sequence of a tenant is gone; what it was served is remembered for a while."""
        self._present[tenant] -= 1
        if self._present[tenant]:
            return
        del self._present[tenant]
        while len(self._tokens) > max(_MAX_REMEMBERED, len(self._present)):
            absent = next(other for other in self._tokens if other not in self._present)
            del self._tokens[absent]


def _line_of(sequence: Sequence) -> tuple[int, str]:
    return (sequence.options.priority, sequence.options.tenant)
