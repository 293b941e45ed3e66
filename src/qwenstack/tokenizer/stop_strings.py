"""Find the first of several stop strings in a text that arrives in pieces, holding back as little as possible."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A prefix of one or more stop strings."""

    depth: int
    children: dict[str, _Node] = field(default_factory=dict[str, "_Node"])
    fallback: _Node | None = None
    """The longest proper suffix of this prefix that is also a prefix of a stop string; None at the root."""
    longest_stop: str | None = None
    """The longest stop string that ends where this prefix ends."""


class StopStrings:
    """Watch one answer's text for stop strings.

    The match that ends first wins; of several that end at the same character, the longest. How the text is cut into
    pieces makes no difference.

    Args:
        stops: the strings to look for, none of them empty.
        include_in_output: release the stop string itself, too.

    Source: Aho and Corasick 1975, "Efficient string matching".
    """

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        """Build the automaton."""
        self._root = _build_automaton(stops)
        self._node = self._root
        self._held = ""
        self._include_in_output = include_in_output
        self.matched: str | None = None
        """The stop string that ended the text."""
        self.num_released = 0
        """Characters released so far."""

    def push(self, text: str) -> str:
        """Take the next piece; return what certainly comes before any stop string. After a match, nothing more."""
        if self.matched is not None:
            return ""
        for position, char in enumerate(text, start=1):
            node = self._node = self._advance(char)
            if node.longest_stop is not None:
                self.matched = node.longest_stop
                seen = self._held + text[:position]
                return self._release(seen if self._include_in_output else seen[: -len(self.matched)], held="")
        seen = self._held + text
        cut = len(seen) - self._node.depth
        return self._release(seen[:cut], held=seen[cut:])

    def finish(self) -> str:
        """Return what was held back, when the text ends without a match."""
        return self._release(self._held, held="")

    def _advance(self, char: str) -> _Node:
        node: _Node | None = self._node
        while node is not None:
            child = node.children.get(char)
            if child is not None:
                return child
            node = node.fallback
        return self._root

    def _release(self, text: str, *, held: str) -> str:
        self._held = held
        self.num_released += len(text)
        return text


def _build_automaton(stops: Sequence[str]) -> _Node:
    root = _Node(depth=0)
    for stop in stops:
        assert stop, "an empty stop string would end every text"
        node = root
        for depth, char in enumerate(stop, start=1):
            node = node.children.setdefault(char, _Node(depth=depth))
        node.longest_stop = stop
    # Breadth first: a node's fallback is shorter than the node, so it is finished when it is needed.
    waiting = deque([root])
    while waiting:
        node = waiting.popleft()
        for char, child in node.children.items():
            child.fallback = _fallback_of(node, char) or root
            if child.longest_stop is None:
                child.longest_stop = child.fallback.longest_stop
            waiting.append(child)
    return root


def _fallback_of(parent: _Node, char: str) -> _Node | None:
    node = parent.fallback
    while node is not None:
        if char in node.children:
            return node.children[char]
        node = node.fallback
    return None
