"""Who waits, and in which order they are let in: by urgency, then evenly between tenants, then by arrival.

A request becomes one level more urgent for every `STEPS_PER_LEVEL` steps it has waited, so that nobody waits for ever.
Between tenants the one goes first that was served the fewest tokens; a tenant that comes back after a pause starts
level with the least served of those present, so that a pause is no credit.
Source: the virtual token counter of Sheng et al. 2024, arXiv:2401.00588, section 4.1.
"""

from __future__ import annotations

import bisect
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qwenstack.core.request_options import MAX_PRIORITY
from qwenstack.engine.sequence import Sequence

STEPS_PER_LEVEL = 200
"""About ten seconds of steps with a full batch of the default model on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One who waits."""

    key: int
    priority: int
    """As it has aged."""
    tenant: str


def order_of_admission(places: Iterable[Place], served: Mapping[str, int]) -> list[Place]:
    """Return who goes first: the most urgent; of those tenant after tenant in turn, the least served one first."""
    groups: dict[int, dict[str, deque[Place]]] = {}
    for place in sorted(places, key=lambda place: place.key):
        groups.setdefault(place.priority, {}).setdefault(place.tenant, deque()).append(place)
    ordered: list[Place] = []
    for priority in sorted(groups):
        tenants = groups[priority]
        turns = dict.fromkeys(tenants, 0)
        while tenants:
            first = min(tenants, key=lambda tenant: (turns[tenant], served.get(tenant, 0), tenants[tenant][0].key))
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

    def first(self, count: int, *, step: int, served: Mapping[str, int]) -> list[Sequence]:
        """Return at most `count` in their order of admission; nobody leaves the queue."""
        heads = [line[at] for line in self._lines.values() for at in range(min(count, len(line)))]
        by_key = {sequence.key: sequence for sequence in heads}
        places = [Place(key=one.key, priority=aged_priority(one, step), tenant=one.options.tenant) for one in heads]
        return [by_key[place.key] for place in order_of_admission(places, served)[:count]]


def aged_priority(sequence: Sequence, step: int) -> int:
    """Return the urgency of one who waits since `arrival_step`."""
    waited = max(step - sequence.arrival_step, 0)
    return max(sequence.options.priority - waited // STEPS_PER_LEVEL, -MAX_PRIORITY)


class ServedTokens:
    """How much each present tenant was served, for `order_of_admission`."""

    def __init__(self) -> None:
        """Start with nobody."""
        self._tokens: dict[str, int] = {}
        self._present: Counter[str] = Counter()

    @property
    def by_tenant(self) -> Mapping[str, int]:
        """Tokens served; comparable between those present, not a bill."""
        return self._tokens

    def arrive(self, tenant: str) -> None:
        """Note that a tenant has one more sequence; a new one starts level with the least served."""
        self._present[tenant] += 1
        if tenant not in self._tokens:
            self._tokens[tenant] = min(self._tokens.values(), default=0)

    def charge(self, tenant: str, num_tokens: int) -> None:
        """Count computed tokens, of prompts and answers alike."""
        self._tokens[tenant] += num_tokens

    def leave(self, tenant: str) -> None:
        """Note that one sequence of a tenant is gone; with the last one the tenant is forgotten."""
        self._present[tenant] -= 1
        if not self._present[tenant]:
            del self._present[tenant], self._tokens[tenant]


def _line_of(sequence: Sequence) -> tuple[int, str]:
    return (sequence.options.priority, sequence.options.tenant)
