"""Keys and values that were computed once, found again by the tokens that lead to them.

A full block is known by a key chained over all blocks before it (`cache_key.py`), so that equal keys mean equal
prefixes under the same model, adapter, precision and tenant. The cache knows blocks by number; who holds them is the
pool's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwenstack.core.errors import EngineError


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """A full block whose content never changes while it is here."""

    key: bytes
    block: int
    token_ids: tuple[int, ...]
    """The block's own tokens; compared on every hit, so that not even a colliding key gives wrong content."""


class PrefixCache:
    """Full blocks by key."""

    def __init__(self) -> None:
        """Start empty."""
        self._by_key: dict[bytes, CachedBlock] = {}
        self._by_block: dict[int, CachedBlock] = {}

    def match(self, chain: Iterator[tuple[bytes, tuple[int, ...]]]) -> list[int]:
        """Return the blocks of the longest known beginning of a chain of (key, tokens)."""
        blocks: list[int] = []
        for key, token_ids in chain:
            cached = self._by_key.get(key)
            if cached is None or cached.token_ids != token_ids:
                break
            blocks.append(cached.block)
        return blocks

    def insert(self, key: bytes, token_ids: tuple[int, ...], block: int) -> bool:
        """Make a full block known; False where one with the same key is already, which then stays the one."""
        if key in self._by_key or block in self._by_block:
            return False
        self._by_key[key] = self._by_block[block] = CachedBlock(key, block, token_ids)
        return True

    def forget(self, block: int) -> None:
        """Drop a block whose content is about to be overwritten."""
        cached = self._by_block.pop(block, None)
        if cached is not None:
            del self._by_key[cached.key]

    def check_integrity(self) -> None:
        """Compare both directions.

        Raises:
            EngineError: they differ.
        """
        if sorted(cached.block for cached in self._by_key.values()) != sorted(self._by_block):
            raise EngineError(
                f"The prefix cache has {len(self._by_key)} keys and {len(self._by_block)} blocks that do not match."
            )
