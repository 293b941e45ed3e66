"""The self-test notices kernels that lie, whichever operation they lie about, and others are taken instead."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import (
    ActivationBits,
    Isa,
    KernelChoice,
    Kernels,
    ReferenceKernels,
    SelfTest,
    load,
    load_kernels,
    self_test_of,
    supported_isas,
)
from qwenstack.kernels.self_test import run_self_test

ALL_OPERATIONS = (
    *(f"linear {weight_type.name}" for weight_type in WeightType),
    "linear Q8_0 at 16 bits",
    "gate_up_silu",
    "add_experts",
    "silu_times",
    "add_lora",
    "rms_norm",
    *(
        f"{operation} {dtype}"
        for dtype in ("float32", "float16", "bfloat16", "int8")
        for operation in ("rope_and_write_kv", "attend")
    ),
)
OUTPUTS = {
    "linear": 2,
    "gate_up_silu": 2,
    "add_experts": 4,
    "silu_times": 1,
    "add_lora": 2,
    "rms_norm": 3,
    "rope_and_write_kv": "k_cache",
    "attend": "out_TX",
}
"""Which argument of an operation receives the result."""


class WrappedKernels:
    """The reference kernels with one operation replaced, or all: `replaced(compute, *arguments)`."""

    def __init__(
        self, replaced: Callable[..., None], operations: Iterable[str], kernels: Kernels | None = None
    ) -> None:
        self._replaced, self._operations = replaced, tuple(operations)
        self._kernels = kernels or ReferenceKernels()

    def with_activation_bits(self, activation_bits: ActivationBits) -> WrappedKernels:
        return WrappedKernels(self._replaced, self._operations, self._kernels.with_activation_bits(activation_bits))

    def __getattr__(self, name: str) -> Any:
        compute = getattr(self._kernels, name)
        return functools.partial(self._replaced, compute) if name in self._operations else compute


def lying(operation: str, output: int | str, lie: float, index: int = -1) -> Kernels:
    """Kernels that change one value of one operation's result."""

    def compute_and_lie(compute: Callable[..., None], *args: Any, **options: Any) -> None:
        compute(*args, **options)
        out = options[output] if isinstance(output, str) else args[output]
        if out.dtype.kind == "f":
            out.flat[index] += lie
        else:
            out.flat[index] ^= 0x40 << 8 * (out.itemsize - 1)  # the highest bit but the sign

    return cast("Kernels", WrappedKernels(compute_and_lie, [operation]))


def silent() -> Kernels:
    """Kernels that write nothing."""
    return cast("Kernels", WrappedKernels(lambda *args, **options: None, OUTPUTS))


def test_every_instruction_set_of_this_machine_passes():
    for isa in supported_isas():
        result = self_test_of(isa)
        assert (isa, result.wrong) == (isa, ())
        assert result.num_operations == len(ALL_OPERATIONS)


@pytest.mark.parametrize("lie", [1.0, np.nan, np.inf])
@pytest.mark.parametrize("operation", OUTPUTS)
def test_one_wrong_value_is_noticed_and_named(operation: str, lie: float):
    result = run_self_test(lying(operation, OUTPUTS[operation], lie), ReferenceKernels())
    assert result.wrong == tuple(name for name in ALL_OPERATIONS if name.split()[0] == operation)


def test_a_small_error_is_noticed_too():
    result = run_self_test(lying("rms_norm", 3, 1e-3), ReferenceKernels())
    assert result.wrong == ("rms_norm",)


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
def test_a_wrong_key_or_value_is_noticed_in_every_type_of_cache(name: str):
    result = run_self_test(lying("rope_and_write_kv", name, 1.0), ReferenceKernels())
    assert len(result.wrong) == 4


def test_queries_that_are_not_turned_are_noticed():
    result = run_self_test(lying("rope_and_write_kv", 0, 1.0, index=0), ReferenceKernels())
    assert len(result.wrong) == 4


def test_kernels_that_write_nothing_are_noticed_in_every_operation():
    assert run_self_test(silent(), ReferenceKernels()).wrong == ALL_OPERATIONS


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of instruction sets whose self-test fails; a test adds some."""
    isas: set[str] = set()

    def tested(isa: Isa) -> SelfTest:
        return SelfTest(num_operations=26, wrong=("linear Q4_K", "rms_norm") if isa in isas else (), duration_s=0.01)

    monkeypatch.setattr(load, "self_test_of", tested)
    return isas


def test_the_next_slower_instruction_set_is_taken_with_a_warning(broken: set[str], caplog: pytest.LogCaptureFixture):
    isas = supported_isas()
    broken.update(isas[:-1])
    with caplog.at_level(logging.WARNING):
        kernels = load_kernels(2, activation_bits=16)
    assert "scalar" in kernels.name
    assert "2 threads" in kernels.name
    assert len(caplog.records) == len(isas) - 1
    for isa, record in zip(isas, caplog.records, strict=False):
        assert repr(isa) in record.getMessage()
        assert "linear Q4_K, rms_norm" in record.getMessage()


@pytest.mark.parametrize("choice", ["auto", "scalar"])
def test_numpy_computes_where_all_compiled_kernels_are_wrong(
    choice: KernelChoice, broken: set[str], caplog: pytest.LogCaptureFixture
):
    broken.update(supported_isas())
    assert load_kernels(1, choice).name == "reference (numpy)"
    assert "'scalar'" in caplog.text
    assert "very slow" in caplog.text


def test_an_instruction_set_that_is_slower_than_a_broken_one_can_be_chosen(broken: set[str]):
    broken.update(supported_isas()[:-1])
    assert "scalar" in load_kernels(1, "scalar").name


def test_nothing_is_said_where_all_is_well(broken: set[str], caplog: pytest.LogCaptureFixture):
    assert not broken
    assert supported_isas()[0] in load_kernels(1).name
    assert caplog.text == ""
