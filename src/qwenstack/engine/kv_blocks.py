"""The KV blocks of all sequences: what is found again, what each is given, what is kept for those that come later.

Sequences know their blocks as a list of numbers; only this module changes it. Behind the blocks in memory there may be
more on the disk, which are read back into fresh ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import Buffer

from qwenstack.engine.block_pool import BlockPool
from qwenstack.engine.prefix_cache import PrefixCache
from qwenstack.engine.scheduler import blocks_for
from qwenstack.engine.sequence import Sequence
from qwenstack.models import KVCache


class BlockStore(Protocol):
    """Where blocks outlive the memory; `qwenstack.engine.kv_store.KVStore` is one."""

    def contains(self, key: bytes) -> bool:
        """Whether a block seems to be there."""
        ...

    def get(self, key: bytes, token_ids: SequenceOf[int]) -> memoryview | None:
        """Return a block's bytes, proven to be what was put; None if they are not there."""
        ...

    def put(self, key: bytes, parent: bytes, token_ids: SequenceOf[int], payload: Callable[[], Buffer]) -> bool:
        """Keep a block; `payload` is called at once, and only if it is wanted."""
        ...

    def close(self) -> None:
        """Write what waits, within seconds, and take no more."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """What of a waiting sequence is computed already."""

    blocks: tuple[int, ...]
    num_idle: int
    """Of these blocks: how many nobody holds."""
    num_stored: int
    """Blocks that follow and can be read from the disk."""


class KVBlocks:
    """Blocks and who holds them.

    Args:
        kv_cache: the memory that the blocks are in.
        store: more blocks, on the disk.
    """

    def __init__(self, kv_cache: KVCache, store: BlockStore | None = None) -> None:
        """Start with every block free."""
        self._kv_cache = kv_cache
        self._store = store
        self._prefixes = PrefixCache()
        self._pool = BlockPool(kv_cache.num_blocks, on_reuse=self._prefixes.forget)
        self.block_size = kv_cache.block_size

    @property
    def num_total(self) -> int:
        """Blocks that exist."""
        return self._pool.num_blocks

    @property
    def num_available(self) -> int:
        """Blocks that nobody holds."""
        return self._pool.num_available

    def find(self, sequence: Sequence) -> Found:
        """Look for the blocks of a waiting sequence's beginning."""
        if not sequence.shares_prefix:
            return Found((), 0, 0)
        blocks = tuple(self._prefixes.match(sequence.chain(self.block_size)))
        num_idle = sum(self._pool.is_idle(block) for block in blocks)
        return Found(blocks, num_idle, max(self._known_length(sequence, len(blocks)) - len(blocks), 0))

    def count_own(self, sequence: Sequence) -> int:
        """Return how many of a sequence's blocks nobody else holds."""
        return self._pool.count_unshared(sequence.blocks)

    def seat(self, sequence: Sequence) -> None:
        """Let an admitted sequence hold what is found of it."""
        found = self.find(sequence)
        self._pool.hold(found.blocks)
        sequence.blocks = list(found.blocks)
        sequence.num_known_blocks = len(found.blocks)
        sequence.num_stored_blocks = found.num_stored
        sequence.num_computed_tokens = len(found.blocks) * self.block_size

    def give(self, sequence: Sequence, count: int) -> None:
        """Give a sequence blocks to write to; the plan has made sure that there are enough."""
        sequence.blocks.extend(self._pool.allocate(count))

    def restore(self, sequence: Sequence, count: int) -> int:
        """Read a sequence's next blocks from the disk; fewer where one is not there any more or damaged.

        Returns the tokens that need not be computed for that.
        """
        assert self._store is not None
        before = sequence.num_computed_tokens
        first = len(sequence.blocks)
        for number, (key, token_ids) in enumerate(sequence.chain(self.block_size, first), start=first):
            if number == first + count:
                break
            payload = self._store.get(key, token_ids)
            if payload is None:
                sequence.num_stored_blocks = 0
                break
            self.give(sequence, 1)
            self._kv_cache.write_block(sequence.blocks[-1], payload)
            sequence.num_stored_blocks -= 1
            sequence.num_computed_tokens += self.block_size
            self._remember(sequence, number, key, token_ids)
        return sequence.num_computed_tokens - before

    def note_computed(self, sequence: Sequence) -> None:
        """Make the blocks that became full known to later sequences, in memory and on the disk."""
        num_full = sequence.num_computed_tokens // self.block_size
        if num_full <= sequence.num_known_blocks or not (sequence.options.prefix_cache and sequence.is_sound):
            return
        for number in range(sequence.num_known_blocks, num_full):
            key = sequence.block_key(number, self.block_size)
            token_ids = sequence.block_tokens(number, self.block_size)
            if self._remember(sequence, number, key, token_ids) and self._store is not None:
                parent = sequence.block_key(number - 1, self.block_size) if number else sequence.root_key
                self._store.put(key, parent, token_ids, self._payload_of(sequence.blocks[number]))

    def trim(self, sequence: Sequence) -> None:
        """Take back the blocks behind the last computed token, which only wrong guesses needed."""
        kept = blocks_for(sequence.num_computed_tokens, self.block_size)
        self._pool.release(reversed(sequence.blocks[kept:]))
        del sequence.blocks[kept:]

    def release(self, sequence: Sequence) -> None:
        """Take back all blocks of a sequence; what others may want of them stays known."""
        self._pool.release(reversed(sequence.blocks))
        sequence.blocks = []
        sequence.num_computed_tokens = sequence.num_known_blocks = sequence.num_stored_blocks = 0
        sequence.known_length = None

    def close(self) -> None:
        """Let the disk take what waits for it."""
        if self._store is not None:
            self._store.close()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Compare the books with what the sequences hold.

        Raises:
            EngineError: a block is lost or has another number of holders than it should.
        """
        self._pool.check_integrity(sequence.blocks for sequence in sequences)
        self._prefixes.check_integrity()

    def _known_length(self, sequence: Sequence, num_in_memory: int) -> int:
        """Return how many blocks from the first on are in memory or on the disk; the disk is asked once."""
        if self._store is None:
            return num_in_memory
        if sequence.known_length is None:
            sequence.known_length = num_in_memory
            for key, _ in sequence.chain(self.block_size, first=num_in_memory):
                if not self._store.contains(key):
                    break
                sequence.known_length += 1
        return sequence.known_length

    def _remember(self, sequence: Sequence, number: int, key: bytes, token_ids: tuple[int, ...]) -> bool:
        sequence.num_known_blocks = number + 1
        is_new = self._prefixes.insert(key, token_ids, sequence.blocks[number])
        if is_new:
            self._pool.keep(sequence.blocks[number])
        return is_new

    def _payload_of(self, block: int) -> Callable[[], Buffer]:
        return lambda: self._kv_cache.read_block(block).data
