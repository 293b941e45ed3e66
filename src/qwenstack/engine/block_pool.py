"""Who holds which block of the KV cache.

A block is *held* by one sequence or, where its content is a shared prefix, by several; *idle* when nobody holds it but
its content may be wanted again; or *free*. Idle blocks are given away last, the longest unused first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from qwenstack.core.errors import EngineError


class BlockPool:
    """Hands out block numbers, counts the holders of each and takes them back.

    Args:
        num_blocks: blocks that exist.
        on_reuse: told of a block whose kept content is about to be overwritten.
    """

    def __init__(self, num_blocks: int, on_reuse: Callable[[int], None]) -> None:
        """Start with every block free."""
        self.num_blocks = num_blocks
        self._on_reuse = on_reuse
        self._holders = [0] * num_blocks
        self._num_shared = 0
        """Blocks with several holders."""
        self._kept = bytearray(num_blocks)
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._idle)

    def is_idle(self, block: int) -> bool:
        """Whether a block has kept content and no holder: to hold it takes one of the available."""
        return block in self._idle

    def count_unshared(self, blocks: Sequence[int]) -> int:
        """Return how many of a sequence's blocks nobody else holds."""
        if not self._num_shared:
            return len(blocks)
        return sum(self._holders[block] == 1 for block in blocks)

    def allocate(self, count: int) -> list[int]:
        """Give `count` blocks to one holder, free ones first; the plan has made sure that there are enough."""
        assert 0 <= count <= self.num_available, f"{count} blocks asked, {self.num_available} available"
        return [self._take() for _ in range(count)]

    def hold(self, blocks: Iterable[int]) -> None:
        """Add a holder to blocks with kept content."""
        for block in blocks:
            assert self._kept[block], f"block {block} holds nothing to share"
            self._holders[block] += 1
            self._num_shared += self._holders[block] == 2
            self._idle.pop(block, None)

    def keep(self, block: int) -> None:
        """Mark the content of a held block as worth keeping when its holders are gone."""
        assert self._holders[block] > 0, f"block {block} is nobody's"
        self._kept[block] = True

    def release(self, blocks: Iterable[int]) -> None:
        """Take one holder off each block.

        Give them last first where they are a sequence's: then the end of a prefix is reused before its beginning,
        without which the end could not be found.
        """
        for block in blocks:
            self._holders[block] -= 1
            self._num_shared -= self._holders[block] == 1
            assert self._holders[block] >= 0, f"block {block} was released twice"
            if self._holders[block]:
                continue
            if self._kept[block]:
                self._idle[block] = None
            else:
                self._free.append(block)

    def check_integrity(self, held: Iterable[Iterable[int]]) -> None:
        """Compare with the holders' own lists.

        Raises:
            EngineError: a block is lost, or has another number of holders than it should.
        """
        counted = [0] * self.num_blocks
        for blocks in held:
            for block in blocks:
                counted[block] += 1
        if counted != self._holders:
            wrong = next(block for block in range(self.num_blocks) if counted[block] != self._holders[block])
            raise EngineError(
                f"KV block {wrong} is in {counted[wrong]} sequences, and {self._holders[wrong]} are counted."
            )
        if self._num_shared != sum(count > 1 for count in counted):
            raise EngineError(f"{self._num_shared} KV blocks are counted as shared, which is not so.")
        unheld = [block for block, count in enumerate(counted) if count == 0]
        if sorted([*self._free, *self._idle]) != unheld:
            raise EngineError(f"The KV blocks do not add up: {self.num_available} available, {len(unheld)} not held.")

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._kept[block] = False
            self._on_reuse(block)
        self._holders[block] = 1
        return block
