"""RMS norm, rotary embedding and the write into the key/value cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenstack.kernels import Kernels, ReferenceKernels
from qwenstack.kernels.kv_rows import from_rows, row_width, to_rows

FLOAT32 = 2e-6
"""A few roundings of float32 on values around 1."""
CACHE_DTYPES = (np.float32, np.float16, np.uint16, np.int8)
CACHE_STEP = {np.float32: 2.0**-22, np.float16: 2.0**-11, np.uint16: 2.0**-8, np.int8: 2.0**-11}
"""Half a step of the cache's type, relative: rounding may fall the other way where the last bit of float32 differs."""
CODE_STEP = {np.float32: 0, np.float16: 0, np.uint16: 0, np.int8: 0.06}
"""One code of an int8 cache: 7.5 / 127, for values of a normal distribution and their products."""


@pytest.mark.parametrize("width", [1, 6, 16, 77, 896])
def test_rms_norm_divides_by_the_root_of_the_mean_square(width, kernels):
    rng = np.random.default_rng(width)
    x = rng.normal(size=(3, width)).astype(np.float32)
    weight = rng.normal(size=width).astype(np.float32)
    out = np.empty_like(x)
    kernels.rms_norm(x, weight, 1e-6, out)
    exact = torch.nn.functional.rms_norm(
        torch.tensor(x).double(), (width,), torch.tensor(weight).double(), 1e-6
    ).numpy()
    np.testing.assert_allclose(out, exact, rtol=0, atol=FLOAT32 * np.abs(exact).max())


def test_rms_norm_may_write_over_its_input(kernels):
    x = np.random.default_rng(0).normal(size=(4, 33)).astype(np.float32)
    weight = np.ones(33, np.float32)
    out = np.empty_like(x)
    kernels.rms_norm(x, weight, 1e-6, out)
    kernels.rms_norm(x, weight, 1e-6, x)
    np.testing.assert_array_equal(x, out)


class RopeCase:
    """Random arguments of one call, and what the cache and the queries become."""

    def __init__(self, *, tokens, heads, kv_heads, head_dim, block_size, dtype, norms, seed=0):
        rng = np.random.default_rng(seed)
        self.qkv = rng.normal(size=(tokens, (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
        angles = rng.uniform(0, 100, size=(tokens, head_dim // 2)).astype(np.float32)
        num_blocks = -(-tokens // block_size) + 2
        norm = rng.normal(size=(2, head_dim)).astype(np.float32) if norms else [None, None]
        self.cache_shape = (num_blocks, kv_heads, block_size, row_width(head_dim, np.dtype(dtype)))
        self.dtype = dtype
        self.options = {
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "q_norm_H": norm[0],
            "k_norm_H": norm[1],
            "eps": 1e-6,
            "cos_T_half": np.cos(angles),
            "sin_T_half": np.sin(angles),
            "slot_mapping": rng.permutation(num_blocks * block_size)[:tokens].astype(np.int64),
        }

    def run(self, kernels: Kernels, rows: slice = slice(None)):
        qkv = self.qkv[rows].copy()
        k_cache, v_cache = np.zeros(self.cache_shape, self.dtype), np.zeros(self.cache_shape, self.dtype)
        by_token = {name: self.options[name][rows] for name in ("cos_T_half", "sin_T_half", "slot_mapping")}
        kernels.rope_and_write_kv(qkv, **(self.options | by_token), k_cache=k_cache, v_cache=v_cache)
        return qkv, k_cache, v_cache


def test_the_reference_turns_pairs_like_complex_numbers():
    case = RopeCase(tokens=5, heads=4, kv_heads=2, head_dim=8, block_size=4, dtype=np.float32, norms=False)
    qkv, k_cache, v_cache = case.run(ReferenceKernels())
    heads = case.qkv.reshape(5, 8, 8).astype(np.float64)
    angle = (case.options["cos_T_half"] + 1j * case.options["sin_T_half"])[:, None]
    turned = (heads[..., :4] + 1j * heads[..., 4:]) * angle
    expected = np.concatenate([turned.real, turned.imag], axis=2)
    np.testing.assert_allclose(qkv.reshape(5, 8, 8)[:, :4], expected[:, :4], atol=1e-6)
    np.testing.assert_array_equal(qkv.reshape(5, 8, 8)[:, 4:], case.qkv.reshape(5, 8, 8)[:, 4:])
    for token, slot in enumerate(case.options["slot_mapping"]):
        np.testing.assert_allclose(k_cache[slot // 4, :, slot % 4], expected[token, 4:6], atol=1e-6)
        np.testing.assert_array_equal(v_cache[slot // 4, :, slot % 4], case.qkv.reshape(5, 8, 8)[token, 6:])
    assert np.count_nonzero(v_cache) == 5 * 2 * 8


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.sampled_from([2, 6, 10, 32, 64, 70, 128]),
    block_size=st.sampled_from([1, 4, 16]),
    dtype=st.sampled_from(CACHE_DTYPES),
    norms=st.booleans(),
)
def test_every_instruction_set_gives_the_reference_numbers_and_one_set_of_bits(
    native, tokens, kv_heads, group, head_dim, block_size, dtype, norms
):
    case = RopeCase(
        tokens=tokens,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        norms=norms,
    )
    expected = case.run(ReferenceKernels())
    results = {isa: case.run(kernels) for isa, kernels in native.items()}
    for result in results.values():
        np.testing.assert_allclose(result[0], expected[0], rtol=0, atol=FLOAT32 * np.abs(expected[0]).max())
        for actual, wanted in zip(result[1:], expected[1:], strict=True):
            np.testing.assert_allclose(
                from_rows(actual), from_rows(wanted), rtol=2 * CACHE_STEP[dtype], atol=CODE_STEP[dtype] + FLOAT32 * 5
            )
        for actual, scalar in zip(result, results["scalar"], strict=True):
            np.testing.assert_array_equal(actual.view(np.uint8), scalar.view(np.uint8))


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_a_token_is_written_alike_alone_and_in_a_batch(dtype, kernels):
    case = RopeCase(tokens=12, heads=6, kv_heads=2, head_dim=64, block_size=8, dtype=dtype, norms=True)
    qkv, k_cache, v_cache = case.run(kernels)
    for token in (0, 7, 11):
        alone, k_alone, v_alone = case.run(kernels, slice(token, token + 1))
        np.testing.assert_array_equal(alone[0], qkv[token])
        block, offset = divmod(int(case.options["slot_mapping"][token]), 8)
        np.testing.assert_array_equal(k_alone[block, :, offset], k_cache[block, :, offset])
        np.testing.assert_array_equal(v_alone[block, :, offset], v_cache[block, :, offset])


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_values_are_rounded_to_the_cache_like_torch_rounds_them(dtype, kernels):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 4096, np.uint32)
    edges = np.array([0x33000000, 0x33000001, 0x387FF000, 0x387FE000, 0x477FEFFF, 0x477FF000, 0x7F7FFFFF, 0x00000001])
    bits[: len(edges)] = edges
    values = bits.view(np.float32).reshape(64, 64)
    values[np.isnan(values)] = np.float32(np.nan)
    torch_type = torch.float16 if dtype == np.float16 else torch.bfloat16
    expected = torch.tensor(values).to(torch_type).float().numpy()
    np.testing.assert_array_equal(from_rows(written_values(kernels, values, dtype)), expected)


def written_values(kernels: Kernels, values: np.ndarray, dtype: type) -> np.ndarray:
    """Return the rows that values `[T, H]` of one head become."""
    tokens, head_dim = values.shape
    qkv = np.zeros((tokens, 3 * head_dim), np.float32)
    qkv[:, 2 * head_dim :] = values
    width = row_width(head_dim, np.dtype(dtype))
    k_cache, v_cache = (np.zeros((tokens, 1, 1, width), dtype) for _ in range(2))
    kernels.rope_and_write_kv(
        qkv,
        num_heads=1,
        num_kv_heads=1,
        q_norm_H=None,
        k_norm_H=None,
        eps=0.0,
        cos_T_half=np.ones((tokens, head_dim // 2), np.float32),
        sin_T_half=np.zeros((tokens, head_dim // 2), np.float32),
        slot_mapping=np.arange(tokens),
        k_cache=k_cache,
        v_cache=v_cache,
    )
    return v_cache.reshape(tokens, width)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head_dim=st.sampled_from([2, 10, 16, 18, 32, 64, 70, 128, 300]),
    exponent=st.floats(-12, 9),
    seed=st.integers(0, 1 << 16),
)
def test_int8_rows_are_within_half_a_code_and_the_same_bits_everywhere(native, head_dim, exponent, seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(9, head_dim)) * 10.0 ** (exponent + rng.uniform(-2, 2, (9, 1)))).astype(np.float32)
    values[rng.random((9, head_dim)) < 0.1] = 0
    rows = to_rows(values, np.dtype(np.int8))
    for isa, kernels in native.items():
        np.testing.assert_array_equal(written_values(kernels, values, np.int8), rows, err_msg=isa)
    back = from_rows(rows)
    for start in range(0, head_dim, 16):
        group, stored = values[:, start : start + 16], back[:, start : start + 16]
        amax = np.abs(group).max(axis=1, keepdims=True)
        in_range = (amax > 0.01) & (amax < 65_000 * 127)
        half_a_code = amax / 127 * (0.5 + 127 / 2**11)  # the scale is rounded too
        assert np.all(np.abs(stored - group)[in_range[:, 0]] <= half_a_code[in_range[:, 0]])
        too_large = amax[:, 0] > 65_520 * 127
        assert np.isnan(stored[too_large]).all()
        smallest = (amax < 0.01)[:, 0]
        assert np.all(np.abs(stored - group)[smallest] <= 127 * 2.0**-25 + amax[smallest] * 0.005)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_group_of_an_int8_row_is_nan_and_spoils_no_other(poison, kernels):
    values = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    clean = from_rows(written_values(kernels, values, np.int8))
    values[0, 20] = poison
    back = from_rows(written_values(kernels, values, np.int8))
    assert np.isnan(back[0, 16:32]).all()
    np.testing.assert_array_equal(np.delete(back, np.s_[16:32], axis=1), np.delete(clean, np.s_[16:32], axis=1))
