"""Linear layers: the reference against float64, every instruction set against the reference."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import Kernels, ReferenceKernels, dequantize
from qwenstack.kernels.dequantize import FLOAT16_OFFSETS

SAME_NUMBERS = 2e-6
"""Two float32 sums of the same few thousand products, in another order or with fused steps; relative to the largest."""
INT8_ACTIVATIONS = 0.01
"""Root mean square error from 8-bit activations, relative to the spread of the results: a step is the largest of 32
values / 127, about 2.2 / 127 of their spread, and its rounding error has 1 / sqrt(12) of that: 0.005."""

QUANTIZED = [weight_type for weight_type in WeightType if not weight_type.is_float]
FLOATS = [weight_type for weight_type in WeightType if weight_type.is_float]
by_type = pytest.mark.parametrize("weight_type", list(WeightType), ids=lambda weight_type: weight_type.name)


def product(kernels: Kernels, x, weights, *, bias=None, **options):
    packed = kernels.pack(weights, bias)
    out = np.zeros((len(x), packed.out_features), np.float32)
    kernels.linear(x, packed, out, **options)
    return out


def assert_close(actual, expected, tolerance=SAME_NUMBERS):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1e-30, np.abs(expected).max()))


@by_type
def test_the_reference_multiplies_with_the_dequantized_weights(weight_type, make_weight):
    weight = make_weight(weight_type, 40, 512)
    x = np.random.default_rng(1).normal(size=(6, 512)).astype(np.float32)
    exact = x.astype(np.float64) @ dequantize(weight.data, weight_type).astype(np.float64).T
    tolerance = SAME_NUMBERS if weight_type.is_float else INT8_ACTIVATIONS
    actual = product(ReferenceKernels(), x, [weight])
    assert np.sqrt(np.mean((actual - exact) ** 2)) <= tolerance * exact.std()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_weights_made_by_another_quantizer_give_nearly_the_float_product(name, kernels):
    rng = np.random.default_rng(2)
    values = (rng.normal(size=(64, 896)) / np.sqrt(896)).astype(np.float32)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    weight = type("Stored", (), {"weight_type": WeightType[name], "shape": (64, 896), "data": data})()
    x = rng.normal(size=(3, 896)).astype(np.float32)
    exact = x @ values.T
    error = product(kernels, x, [weight]) - exact
    weight_step = 4.2 / 2.0 ** int(name[1])  # 32 normal values span about 4.2 of their spread
    assert np.sqrt(np.mean(error**2)) <= (weight_step / np.sqrt(12) + INT8_ACTIVATIONS) * exact.std()


@by_type
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 8, 9, 257])
def test_every_instruction_set_gives_the_reference_numbers(weight_type, num_tokens, make_weight, kernels):
    columns = 77 if weight_type.is_float else 512
    weight = make_weight(weight_type, 53, columns)
    rng = np.random.default_rng(num_tokens)
    x = rng.normal(size=(num_tokens, columns)).astype(np.float32)
    options = {
        "bias": rng.normal(size=53).astype(np.float32),
        "norm_weight": rng.normal(size=columns).astype(np.float32),
    }
    expected = product(ReferenceKernels(), x, [weight], eps=1e-6, **options)
    assert_close(product(kernels, x, [weight], eps=1e-6, **options), expected)


@by_type
@pytest.mark.parametrize("num_tokens", [1, 3, 6, 17, 300])
def test_all_instruction_sets_give_the_same_bits(weight_type, num_tokens, make_weight, native):
    columns = 130 if weight_type.is_float else 768
    weights = [make_weight(weight_type, 37, columns), make_weight(WeightType.F16, 5, columns)]
    rng = np.random.default_rng(num_tokens)
    x = rng.normal(size=(num_tokens, columns)).astype(np.float32)
    norm_weight = rng.normal(size=columns).astype(np.float32)
    results = {isa: product(kernels, x, weights, norm_weight=norm_weight, eps=1e-5) for isa, kernels in native.items()}
    for isa, result in results.items():
        np.testing.assert_array_equal(result.view(np.uint32), results["scalar"].view(np.uint32), err_msg=isa)


@by_type
def test_a_row_does_not_depend_on_its_neighbours(weight_type, make_weight, kernels):
    columns = 96 if weight_type.block_size < 256 else 256
    packed = kernels.pack([make_weight(weight_type, 33, columns), make_weight(WeightType.BF16, 16, columns)])
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, columns)).astype(np.float32)
    norm_weight = rng.normal(size=columns).astype(np.float32)
    together = np.empty((300, 49), np.float32)
    kernels.linear(x, packed, together, norm_weight=norm_weight, eps=1e-6)
    for start, stop in [(0, 1), (5, 7), (3, 11), (250, 300), (20, 290)]:
        alone = np.empty((stop - start, 49), np.float32)
        kernels.linear(x[start:stop], packed, alone, norm_weight=norm_weight, eps=1e-6)
        np.testing.assert_array_equal(alone, together[start:stop])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weight_type=st.sampled_from(list(WeightType)),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 9),
    num_tokens=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_any_shape_gives_the_reference_numbers(weight_type, rows, blocks, num_tokens, seed, make_weight, native):
    columns = blocks * weight_type.block_size
    weight = make_weight(weight_type, rows, columns, seed)
    x = np.random.default_rng(seed).normal(size=(num_tokens, columns)).astype(np.float32)
    expected = product(ReferenceKernels(), x, [weight])
    terms = np.abs(x) @ np.abs(dequantize(weight.data, weight_type)).T  # the sums themselves may cancel
    for kernels in native.values():
        np.testing.assert_allclose(product(kernels, x, [weight]), expected, rtol=0, atol=SAME_NUMBERS * terms.max())


def test_stacked_matrices_give_their_rows_side_by_side(make_weight, kernels):
    types = [WeightType.Q5_0, WeightType.Q8_0, WeightType.F32, WeightType.Q4_K]
    weights = [make_weight(weight_type, 7 + i, 256, seed=i) for i, weight_type in enumerate(types)]
    x = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
    stacked = product(kernels, x, weights)
    apart = np.concatenate([product(kernels, x, [weight]) for weight in weights], axis=1)
    np.testing.assert_array_equal(stacked, apart)


def test_accumulating_adds_to_what_is_there(make_weight, kernels):
    packed = kernels.pack([make_weight(WeightType.Q8_0, 20, 64)])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 64)).astype(np.float32)
    before = rng.normal(size=(9, 20)).astype(np.float32)
    plain, added = np.empty_like(before), before.copy()
    kernels.linear(x, packed, plain)
    kernels.linear(x, packed, added, accumulate=True)
    np.testing.assert_array_equal(added, before + plain)


@pytest.mark.parametrize("num_tokens", [1, 4, 30])
@pytest.mark.parametrize("types", [("Q4_0", "Q4_0"), ("Q5_0", "Q6_K"), ("BF16", "BF16")], ids="-".join)
def test_gate_and_up_are_joined_by_silu(types, num_tokens, make_weight, kernels):
    gate, up = (make_weight(WeightType[name], 45, 256, seed=i) for i, name in enumerate(types))
    x = np.random.default_rng(0).normal(scale=0.3, size=(num_tokens, 256)).astype(np.float32)
    out = np.empty((num_tokens, 45), np.float32)
    kernels.gate_up_silu(x, kernels.pack([gate, up]), out)
    gated, upper = (product(kernels, x, [weight]).astype(np.float64) for weight in (gate, up))
    assert_close(out, gated / (1 + np.exp(-gated)) * upper)


def test_gate_and_up_give_the_same_bits_everywhere_and_alone(make_weight, native):
    weights = [make_weight(WeightType.Q5_0, 45, 256, seed=i) for i in range(2)]
    x = np.random.default_rng(0).normal(size=(21, 256)).astype(np.float32)
    norm_weight = np.full(256, 1.5, np.float32)
    expected = np.empty((21, 45), np.float32)
    native["scalar"].gate_up_silu(x, native["scalar"].pack(weights), expected, norm_weight=norm_weight, eps=1e-6)
    for kernels in native.values():
        packed = kernels.pack(weights)
        for start, stop in [(0, 21), (4, 5), (7, 13)]:
            out = np.empty((stop - start, 45), np.float32)
            kernels.gate_up_silu(x[start:stop], packed, out, norm_weight=norm_weight, eps=1e-6)
            np.testing.assert_array_equal(out, expected[start:stop])


@pytest.mark.parametrize("weight_type", QUANTIZED, ids=lambda weight_type: weight_type.name)
@pytest.mark.parametrize("code_bits", [0x00, 0xFF])
def test_no_sum_overflows_where_all_codes_and_activations_are_at_their_ends(
    code_bits, weight_type, make_weight, kernels
):
    weight = make_weight(weight_type, 16, 256)
    blocks = weight.data.reshape(-1, weight_type.block_bytes)
    is_scale = np.isin(
        np.arange(weight_type.block_bytes), [at + i for at in FLOAT16_OFFSETS[weight_type] for i in (0, 1)]
    )
    blocks[:, ~is_scale] = code_bits
    period = np.arange(256)
    x = np.stack([np.where(period // length % 2 == 0, 1, -1) for length in (1, 2, 4, 16, 32, 256)]).astype(np.float32)
    x = np.concatenate([x, -x, x[::-1]])  # 18 tokens, enough for tiles to be expanded
    expected = product(ReferenceKernels(), x, [weight])
    assert_close(product(kernels, x, [weight]), expected)
    assert_close(product(kernels, x[-1:], [weight]), expected[-1:])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_row_shows_and_spoils_no_other(poison, make_weight, kernels):
    packed = kernels.pack([make_weight(WeightType.Q4_0, 16, 128), make_weight(WeightType.Q4_1, 16, 128)])
    x = np.random.default_rng(0).normal(size=(9, 128)).astype(np.float32)
    clean, out = np.empty((9, 32), np.float32), np.empty((9, 32), np.float32)
    kernels.linear(x, packed, clean)
    x[4, 77] = poison
    kernels.linear(x, packed, out)
    assert np.isnan(out[4]).all()
    np.testing.assert_array_equal(np.delete(out, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-31, 1e-30, 3e38])
def test_tiny_and_huge_activations_stay_numbers(size, make_weight, kernels):
    packed = kernels.pack([make_weight(WeightType.Q8_0, 16, 32)])
    x = np.full((1, 32), size, np.float32)
    out = np.full((1, 16), np.nan, np.float32)
    kernels.linear(x * np.float32(1e-3), packed, out)
    assert np.isfinite(out).all()
