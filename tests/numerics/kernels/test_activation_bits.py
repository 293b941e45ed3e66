"""16-bit activations: nothing is lost that float32 would keep, on every instruction set and beside any neighbour."""

from __future__ import annotations

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import Kernels, ReferenceKernels, dequantize, load_kernels, supported_isas

SIXTEEN_BIT_ACTIVATIONS = 3e-4
"""Root mean square error relative to the spread of the results; the second rounding divides the first one's step by
254, and 0.005 / 254 = 2e-5 leaves room for float32 sums and for types whose offsets cancel."""
SAME_NUMBERS = 1e-5
"""Products of two float32 sums, each of two planes, in another order; relative to the largest."""

QUANTIZED = [weight_type for weight_type in WeightType if not weight_type.is_float]
by_type = pytest.mark.parametrize("weight_type", QUANTIZED, ids=lambda weight_type: weight_type.name)


def gate_up(kernels: Kernels, x, weights):
    packed = kernels.pack(weights)
    out = np.zeros((len(x), packed.out_features // 2), np.float32)
    kernels.gate_up_silu(x, packed, out)
    return out


def product(kernels: Kernels, x, weights, bias, **options):
    packed = kernels.pack(weights, bias)
    out = np.ones((len(x), packed.out_features), np.float32)
    kernels.linear(x, packed, out, **options)
    return out


@pytest.fixture(scope="module")
def precise() -> dict[str, Kernels]:
    return {isa: load_kernels(2, isa, activation_bits=16) for isa in supported_isas()}


@by_type
def test_the_product_is_that_of_the_dequantized_weights(weight_type, make_weight, precise):
    weights = [make_weight(weight_type, 40, 512), make_weight(WeightType.F32, 7, 512, seed=3)]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 512)).astype(np.float32)
    bias = rng.normal(size=47).astype(np.float32)
    matrix = np.concatenate([dequantize(weight.data, weight.weight_type) for weight in weights]).astype(np.float64)
    exact = x.astype(np.float64) @ matrix.T + bias
    for kernels in (ReferenceKernels(16), *precise.values()):
        error = product(kernels, x, weights, bias) - exact
        assert np.sqrt(np.mean(error[:, :40] ** 2)) <= SIXTEEN_BIT_ACTIVATIONS * exact[:, :40].std()
        added = product(kernels, x, weights, bias, accumulate=True) - 1
        assert np.abs(added - exact).max() <= 3 * SIXTEEN_BIT_ACTIVATIONS * exact.std()


@by_type
def test_all_instruction_sets_and_neighbours_give_the_same_bits(weight_type, make_weight, precise):
    weights = [make_weight(weight_type, 48, 256), make_weight(weight_type, 48, 256, seed=1)]
    x = np.random.default_rng(2).normal(size=(21, 256)).astype(np.float32)
    whole = {isa: gate_up(kernels, x, weights) for isa, kernels in precise.items()}
    for isa, result in whole.items():
        np.testing.assert_array_equal(result, whole["scalar"])
        np.testing.assert_array_equal(gate_up(precise[isa], x[5:6], weights), result[5:6])
    expected = gate_up(ReferenceKernels(16), x, weights)
    np.testing.assert_allclose(whole["scalar"], expected, rtol=0, atol=SAME_NUMBERS * np.abs(expected).max())


def test_kernels_of_another_class_share_packed_weights_and_change_no_bit(make_weight, precise):
    weights = [make_weight(WeightType.Q4_K, 48, 256)]
    x = np.random.default_rng(3).normal(size=(9, 256)).astype(np.float32)
    for fine in precise.values():
        coarse = fine.with_activation_bits(8)
        packed = fine.pack(weights)
        results = {}
        for name, kernels in [("fine", fine), ("coarse", coarse), ("fine again", coarse.with_activation_bits(16))]:
            results[name] = np.empty((9, 48), np.float32)
            kernels.linear(x, packed, results[name])
        np.testing.assert_array_equal(results["fine again"], results["fine"])
        assert (results["coarse"] != results["fine"]).any()
        expected = product(ReferenceKernels(16).with_activation_bits(8), x, weights, None)
        np.testing.assert_allclose(results["coarse"], expected, rtol=0, atol=SAME_NUMBERS * np.abs(expected).max())
