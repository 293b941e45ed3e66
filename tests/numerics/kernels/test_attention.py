"""Attention over blocks: against torch's on gathered keys, and bit for bit against itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenstack.kernels import Kernels
from qwenstack.kernels.kv_rows import from_rows, to_rows

CACHE_DTYPES = (np.float32, np.float16, np.uint16, np.int8)
FLOAT32 = 1e-5
"""Sums of up to a few hundred products and exponentials of about 2 ulp, on values around 1."""


@dataclasses.dataclass(kw_only=True)
class Case:
    """Random sequences with their blocks scattered over the cache."""

    kv_lens: list[int]
    query_lens: list[int]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 8
    dtype: type = np.float32
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        num_sequences, most = len(self.kv_lens), -(-max(self.kv_lens) // self.block_size)
        num_blocks = num_sequences * most + 3
        shape = (num_blocks, self.kv_heads, self.block_size, self.head_dim)
        self.k_cache, self.v_cache = (self.to_cache(rng.normal(size=shape)) for _ in range(2))
        self.block_table = rng.permutation(num_blocks)[: num_sequences * most].reshape(-1, most).astype(np.int32)
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = rng.normal(scale=2, size=(sum(self.query_lens), width)).astype(np.float32)
        self.query_start = np.concatenate([[0], np.cumsum(self.query_lens)]).astype(np.int32)

    def to_cache(self, values):
        return to_rows(values.astype(np.float32), np.dtype(self.dtype))

    def arguments(self):
        return {
            "num_heads": self.heads,
            "num_kv_heads": self.kv_heads,
            "k_cache": self.k_cache,
            "v_cache": self.v_cache,
            "query_start": self.query_start,
            "kv_len": np.array(self.kv_lens, np.int32),
            "block_table": self.block_table,
            "scale": self.head_dim**-0.5,
        }

    def run(self, kernels: Kernels, **changes):
        arguments = {"qkv_TW": self.qkv} | self.arguments() | changes
        out = np.full((len(arguments["qkv_TW"]), self.heads * self.head_dim), np.nan, np.float32)
        kernels.attend(**arguments, out_TX=out)
        return out

    def alone(self, kernels: Kernels, sequence: int, first: int, last: int):
        """Compute some queries of one sequence as if the later ones had not come yet."""
        start = self.query_start[sequence]
        return self.run(
            kernels,
            qkv_TW=np.ascontiguousarray(self.qkv[start + first : start + last]),
            query_start=np.array([0, last - first], np.int32),
            kv_len=np.array([self.kv_lens[sequence] - self.query_lens[sequence] + last], np.int32),
            block_table=self.block_table[sequence : sequence + 1],
        )

    def gathered(self, cache, sequence):
        rows = from_rows(cache)[self.block_table[sequence]].swapaxes(0, 1).reshape(self.kv_heads, -1, self.head_dim)
        return torch.tensor(np.ascontiguousarray(rows[:, : self.kv_lens[sequence]])).double()

    def expected(self):
        results = []
        for sequence, (length, num_queries) in enumerate(zip(self.kv_lens, self.query_lens, strict=True)):
            rows = self.qkv[self.query_start[sequence] : self.query_start[sequence + 1], : self.heads * self.head_dim]
            queries = torch.tensor(rows).double().reshape(num_queries, self.heads, self.head_dim).transpose(0, 1)
            mask = torch.ones(num_queries, length).tril(length - num_queries).bool()
            keys, values = self.gathered(self.k_cache, sequence), self.gathered(self.v_cache, sequence)
            out = torch.nn.functional.scaled_dot_product_attention(
                queries[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
            )
            results.append(out[0].transpose(0, 1).reshape(num_queries, -1).numpy())
        return np.concatenate(results)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_decoding_and_prompts_together_equal_plain_softmax_attention(dtype, kernels):
    case = Case(kv_lens=[1, 70, 33, 9], query_lens=[1, 1, 33, 5], heads=6, head_dim=64, dtype=dtype)
    np.testing.assert_allclose(case.run(kernels), case.expected(), rtol=0, atol=FLOAT32)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 20)), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 5, 7, 8]),
    head_dim=st.sampled_from([2, 6, 10, 16, 50, 80, 128]),
    block_size=st.sampled_from([1, 4, 16, 32, 64]),
    dtype=st.sampled_from(CACHE_DTYPES),
)
def test_any_shape_equals_plain_softmax_attention_with_one_set_of_bits(
    native, lengths, kv_heads, group, head_dim, block_size, dtype
):
    case = Case(
        kv_lens=[old + new for old, new in lengths],
        query_lens=[new for _, new in lengths],
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
    )
    results = {isa: case.run(kernels) for isa, kernels in native.items()}
    np.testing.assert_allclose(results["scalar"], case.expected(), rtol=0, atol=FLOAT32)
    for isa, result in results.items():
        np.testing.assert_array_equal(result.view(np.uint32), results["scalar"].view(np.uint32), err_msg=isa)


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_a_query_has_the_same_bits_in_a_prompt_in_a_chunk_and_alone(dtype, native):
    case = Case(kv_lens=[100, 64], query_lens=[80, 40], heads=14, kv_heads=2, head_dim=64, dtype=dtype)
    together = {isa: case.run(kernels) for isa, kernels in native.items() if isa != "scalar"}
    for isa, result in together.items():
        for sequence, first, last in [(0, 0, 1), (0, 11, 12), (0, 79, 80), (0, 13, 50), (1, 3, 40), (1, 0, 7)]:
            start = case.query_start[sequence]
            alone = case.alone(native[isa], sequence, first, last)
            np.testing.assert_array_equal(alone, result[start + first : start + last])


def test_the_size_of_blocks_changes_no_bit(native):
    reference = Case(kv_lens=[77], query_lens=[9], block_size=77)
    keys, values = (reference.gathered(cache, 0).float().numpy() for cache in (reference.k_cache, reference.v_cache))
    expected = reference.run(native["scalar"])
    for block_size in (1, 7, 16, 32):
        num_blocks = -(-77 // block_size)
        padded = [np.zeros((2, num_blocks * block_size, 16), np.float32) for _ in range(2)]
        for target, source in zip(padded, (keys, values), strict=True):
            target[:, :77] = source
        blocks = [np.ascontiguousarray(p.reshape(2, num_blocks, block_size, 16).swapaxes(0, 1)) for p in padded]
        table = np.arange(num_blocks, dtype=np.int32)[None]
        for kernels in native.values():
            out = reference.run(kernels, k_cache=blocks[0], v_cache=blocks[1], block_table=table)
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_token_never_attends_to_the_future(poison, dtype, kernels):
    case = Case(kv_lens=[50], query_lens=[20], dtype=dtype)
    before = case.run(kernels)
    block, offset = divmod(40, case.block_size)
    for cache in (case.k_cache, case.v_cache):
        cache[case.block_table[0, block], :, offset] = case.to_cache(np.full(case.head_dim, poison))
    after = case.run(kernels)
    np.testing.assert_array_equal(after[:10], before[:10])
    assert np.isnan(after[10:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_a_sequence_never_reads_beyond_its_length(dtype, kernels):
    case = Case(kv_lens=[50, 13], query_lens=[3, 1], dtype=dtype)
    before = case.run(kernels)
    for sequence, length in enumerate(case.kv_lens):
        for position in range(length, case.block_table.shape[1] * case.block_size):
            block, offset = divmod(position, case.block_size)
            for cache in (case.k_cache, case.v_cache):
                cache[case.block_table[sequence, block], :, offset] = case.to_cache(np.full(case.head_dim, np.nan))
    np.testing.assert_array_equal(case.run(kernels), before)


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_flat_and_sharp_scores_stay_numbers(scale, kernels):
    case = Case(kv_lens=[70], query_lens=[70])
    out = case.run(kernels, scale=scale)
    assert np.isfinite(out).all()


def test_nothing_to_do_is_done(kernels):
    case = Case(kv_lens=[5], query_lens=[1])
    empty = {
        "qkv_TW": case.qkv[:0],
        "query_start": np.zeros(1, np.int32),
        "kv_len": np.zeros(0, np.int32),
        "block_table": case.block_table[:0],
    }
    assert case.run(kernels, **empty).shape == (0, 64)
