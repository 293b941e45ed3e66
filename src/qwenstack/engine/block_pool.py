"""Who owns which block of the KV cache."""

from __future__ import annotations

from collections.abc import Iterable

from qwenstack.core.errors import EngineError


class BlockPool:
    """Hands out block numbers and takes them back; a block has one owner at a time."""

    def __init__(self, num_blocks: int) -> None:
        """Start with every block free."""
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Give `count` blocks to the caller; the plan has made sure that there are enough."""
        assert 0 <= count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: Iterable[int]) -> None:
        """Take blocks back."""
        self._free.extend(blocks)

    def check_integrity(self, owned: Iterable[Iterable[int]]) -> None:
        """Compare with the owners' own lists.

        Raises:
            EngineError: a block is lost, or has two owners.
        """
        seen = list(self._free)
        for blocks in owned:
            seen.extend(blocks)
        if sorted(seen) != list(range(self.num_blocks)):
            raise EngineError(f"The KV blocks do not add up: {len(seen)} accounted for, {self.num_blocks} exist.")
