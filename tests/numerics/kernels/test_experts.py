"""`add_experts` is the sum of its experts' own products, for every token and on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import Expert, Kernels, ReferenceKernels, load_kernels

WIDTH, HIDDEN, NUM_EXPERTS, PER_TOKEN = 256, 512, 6, 3
TYPES = {
    "Q4_K, Q6_K": (WeightType.Q4_K, WeightType.Q4_K, WeightType.Q6_K),
    "Q5_0 and Q8_0, Q4_0": (WeightType.Q5_0, WeightType.Q8_0, WeightType.Q4_0),
    "F16": (WeightType.F16, WeightType.F16, WeightType.F16),
    "Q8_0, F32": (WeightType.Q8_0, WeightType.Q8_0, WeightType.F32),
}


@pytest.fixture
def make_experts(make_weight):
    """Pack experts of some types; those of one seed have the same weights in all kernels."""

    def make(kernels: Kernels, kinds: str) -> list[Expert]:
        gate, up, down = TYPES[kinds]
        return [
            (
                kernels.pack([make_weight(gate, HIDDEN, WIDTH, seed=i), make_weight(up, HIDDEN, WIDTH, seed=100 + i)]),
                kernels.pack([make_weight(down, WIDTH, HIDDEN, seed=200 + i)]),
            )
            for i in range(NUM_EXPERTS)
        ]

    return make


def random_batch(num_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x, experts chosen, their weights, and what is there before."""
    rng = np.random.default_rng(num_tokens)
    chosen = rng.integers(0, NUM_EXPERTS - 1, (num_tokens, PER_TOKEN))  # some twice, the last never
    return (
        rng.normal(size=(num_tokens, WIDTH)).astype(np.float32),
        chosen,
        rng.random((num_tokens, PER_TOKEN)).astype(np.float32),
        rng.normal(size=(num_tokens, WIDTH)).astype(np.float32),
    )


def one_by_one(kernels: Kernels, experts: list[Expert], x, chosen, weights, out) -> np.ndarray:
    """The definition: each expert with its tokens, in ascending order."""
    result = out.copy()
    for index, (gate_up, down) in enumerate(experts):
        for token, rank in zip(*np.nonzero(chosen == index), strict=True):
            kernels.gate_up_silu(x[token : token + 1], gate_up, hidden := np.empty((1, HIDDEN), np.float32))
            kernels.linear(hidden, down, answer := np.empty((1, WIDTH), np.float32))
            result[token] += weights[token, rank] * answer[0]
    return result


@pytest.mark.parametrize("num_tokens", [1, 2, 9, 600])
@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("kinds", TYPES)
def test_the_sum_is_that_of_the_experts_one_by_one_to_the_bit(kinds, activation_bits, num_tokens, make_experts, native):
    results = []
    for kernels in (*native.values(), load_kernels(3)):
        own = kernels.with_activation_bits(activation_bits)
        experts = make_experts(own, kinds)
        x, chosen, weights, out = random_batch(num_tokens)
        expected = one_by_one(own, experts, x, chosen, weights, out)
        own.add_experts(x, experts, chosen, weights, out)
        assert np.array_equal(out, expected)
        results.append(out)
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("num_tokens", [1, 20])
@pytest.mark.parametrize("kinds", ["F16", "Q8_0, F32"])
def test_the_sum_is_that_of_the_twin(kinds, num_tokens, make_experts):
    """Types whose hidden values are not rounded to int8: a last bit of theirs could change a code."""
    results = []
    for kernels in (load_kernels(2), ReferenceKernels()):
        x, chosen, weights, out = random_batch(num_tokens)
        kernels.add_experts(x, make_experts(kernels, kinds), chosen, weights, out)
        results.append(out)
    assert np.abs(results[0] - results[1]).max() <= 1e-5 * np.abs(results[1]).max()


@pytest.mark.parametrize("isa", ["auto", "reference"])
def test_wrong_experts_and_choices_are_refused(isa, make_experts, make_weight):
    kernels = load_kernels(1, isa)
    experts = make_experts(kernels, "F16")
    x, chosen, weights, out = random_batch(4)
    other = (experts[0][0], kernels.pack([make_weight(WeightType.F16, WIDTH, HIDDEN + 32)]))
    for arguments in (
        (x, [], chosen, weights, out),
        (x, [*experts[:5], other], chosen, weights, out),
        (x, [*experts[:5], (experts[0][1], experts[0][1])], chosen, weights, out),
        (x, experts[:2], chosen, weights, out),
        (x, experts, chosen - 6, weights, out),
        (x, experts, chosen.astype(np.int32), weights, out),
        (x, experts, chosen, weights[:, :2].copy(), out),
        (x, experts, chosen, weights, out[:3]),
        (x[:, :-1].copy(), experts, chosen, weights, out),
    ):
        with pytest.raises(ValueError, match="add_experts: "):
            kernels.add_experts(*arguments)
    foreign = ReferenceKernels() if isa == "auto" else load_kernels(1)
    with pytest.raises(ValueError, match=r"add_experts|packed by other kernels"):
        kernels.add_experts(x, make_experts(foreign, "F16"), chosen, weights, out)
