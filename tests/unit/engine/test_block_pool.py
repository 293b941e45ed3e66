"""Who holds which block."""

from __future__ import annotations

from qwenstack.engine.block_pool import BlockPool


def test_shared_blocks_may_stand_anywhere_among_a_sequences_own() -> None:
    pool = BlockPool(8, on_reuse=lambda block: None)
    blocks = pool.allocate(4)
    assert pool.count_unshared(blocks) == 4
    pool.keep(blocks[2])
    pool.hold([blocks[2]])
    assert pool.count_unshared(blocks) == 3
    pool.release([blocks[2]])
    assert pool.count_unshared(blocks) == 4


def test_kept_blocks_are_given_away_last_and_the_longest_unused_first() -> None:
    forgotten: list[int] = []
    pool = BlockPool(4, on_reuse=forgotten.append)
    first, second, third, fourth = pool.allocate(4)
    pool.keep(first)
    pool.keep(third)
    pool.release([third, second, first, fourth])
    assert pool.num_available == 4
    assert set(pool.allocate(2)) == {second, fourth}
    assert forgotten == []
    assert pool.allocate(2) == [third, first]
    assert forgotten == [third, first]
