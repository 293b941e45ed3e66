"""Results do not depend on threads, and the pool survives what programs do to it."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import Kernels, load_kernels


def multiply(kernels: Kernels, weight, x):
    out = np.full((len(x), weight.shape[0]), np.nan, np.float32)
    kernels.linear(x, kernels.pack([weight]), out)
    return out


@pytest.mark.parametrize("rows", [16, 48, 1000])
@pytest.mark.parametrize("num_tokens", [1, 7, 150, 600])
def test_any_number_of_threads_gives_the_same_bits(num_tokens, rows, make_weight):
    weight = make_weight(WeightType.Q5_0, rows, 256)
    x = np.random.default_rng(0).normal(size=(num_tokens, 256)).astype(np.float32)
    results = [multiply(load_kernels(num_threads), weight, x) for num_threads in (1, 2, 3, 8)]
    assert np.isfinite(results[0]).all()
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_two_callers_take_turns(make_weight):
    kernels = load_kernels(3)
    weight = make_weight(WeightType.Q8_0, 300, 128)
    packed = kernels.pack([weight])
    inputs = [np.random.default_rng(i).normal(size=(5, 128)).astype(np.float32) for i in range(4)]
    expected = [multiply(kernels, weight, x) for x in inputs]
    failures: list[int] = []

    def call(index: int) -> None:
        out = np.empty((5, 300), np.float32)
        for _ in range(200):
            out.fill(np.nan)
            kernels.linear(inputs[index], packed, out)
            if not np.array_equal(out, expected[index]):
                failures.append(index)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert failures == []


def test_pools_can_be_made_and_dropped_many_times(make_weight):
    weight = make_weight(WeightType.F32, 64, 16)
    x = np.ones((1, 16), np.float32)
    expected = multiply(load_kernels(1), weight, x)
    for _ in range(50):
        np.testing.assert_array_equal(multiply(load_kernels(4), weight, x), expected)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_without_the_threads_it_lost(make_weight):
    kernels = load_kernels(4)
    weight = make_weight(WeightType.Q4_0, 512, 128)
    x = np.ones((20, 128), np.float32)
    expected = multiply(kernels, weight, x)
    child = os.fork()
    if child == 0:
        is_equal = np.array_equal(multiply(kernels, weight, x), expected)
        os._exit(0 if is_equal else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("num_threads", [0, -1, 257])
def test_a_silly_number_of_threads_is_refused(num_threads):
    with pytest.raises(ValueError, match="threads"):
        load_kernels(num_threads)
