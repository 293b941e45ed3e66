"""Weights converted at load, against the `gguf` package and torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.weight_type import WeightType
from qwenstack.hub.stored_tensor import StoredTensor, view_tensor
from qwenstack.kernels import dequantize
from qwenstack.models.weight_format import WeightFormat, convert, loaded_type, quantize_q8_0


def stored(values: np.ndarray, weight_type: WeightType) -> StoredTensor:
    if weight_type is WeightType.BF16:
        raw = torch.tensor(values).to(torch.bfloat16).view(torch.uint16).numpy()
    else:
        raw = values.astype(np.float32 if weight_type is WeightType.F32 else np.float16)
    return view_tensor("w", weight_type, values.shape, raw.view(np.uint8).reshape(-1))


def values_of(tensor: StoredTensor) -> np.ndarray:
    return dequantize(tensor.data, tensor.weight_type)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 7), groups=st.integers(1, 5), exponent=st.floats(-9, 6), seed=st.integers(0, 1 << 16))
def test_int8_loses_no_more_than_the_reference_quantiser(rows: int, groups: int, exponent: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(rows, 32 * groups)) * 10.0**exponent).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    ours = gguf.dequantize(quantize_q8_0(values), q8_0)
    theirs = gguf.dequantize(gguf.quantize(values, q8_0), q8_0)
    assert np.mean((ours - values) ** 2) <= np.mean((theirs - values) ** 2) * (1 + 1e-6)
    amax = np.abs(values).reshape(rows, groups, 32).max(axis=2).repeat(32, axis=1)
    if exponent > -2:  # below, the scale is no normal float16
        assert np.all(np.abs(ours - values) <= amax / 127 * (0.5 + 127 / 2**11))


@pytest.mark.parametrize("weight_type", [WeightType.F32, WeightType.F16, WeightType.BF16])
def test_floats_become_the_type_asked_for(weight_type: WeightType) -> None:
    values = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    tensor = stored(values, weight_type)
    as_int8, as_bfloat16 = convert(tensor, "int8"), convert(tensor, "bfloat16")
    np.testing.assert_array_equal(as_int8.data, quantize_q8_0(values_of(tensor)))
    np.testing.assert_array_equal(
        values_of(as_bfloat16), torch.tensor(values_of(tensor)).to(torch.bfloat16).float().numpy()
    )
    assert (as_int8.weight_type, as_bfloat16.weight_type) == (WeightType.Q8_0, WeightType.BF16)
    assert as_int8.shape == as_bfloat16.shape == (40, 64)


@pytest.mark.parametrize("weight_format", ["stored", "int8", "bfloat16"])
def test_a_matrix_of_the_type_asked_for_is_not_copied(weight_format: WeightFormat) -> None:
    weight_type = WeightType.BF16 if weight_format == "bfloat16" else WeightType.Q8_0
    data = np.zeros((4, weight_type.row_bytes(64)), np.uint8)
    tensor = StoredTensor(name="w", weight_type=weight_type, shape=(4, 64), data=data)
    assert convert(tensor, weight_format) is tensor


def test_quantised_weights_become_bfloat16_but_never_another_quantised_type() -> None:
    rng = np.random.default_rng(0)
    data = gguf.quantize(rng.normal(size=(6, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q4_0)
    tensor = StoredTensor(name="w", weight_type=WeightType.Q4_0, shape=(6, 64), data=data)
    assert convert(tensor, "int8") is tensor
    expected = torch.tensor(gguf.dequantize(data, gguf.GGMLQuantizationType.Q4_0)).to(torch.bfloat16)
    np.testing.assert_array_equal(values_of(convert(tensor, "bfloat16")), expected.float().numpy())


def test_rows_that_are_no_whole_blocks_stay_as_they_are() -> None:
    assert loaded_type(WeightType.BF16, 70, "int8") is WeightType.BF16
    tensor = stored(np.ones((3, 70), np.float32), WeightType.BF16)
    assert convert(tensor, "int8") is tensor


def test_a_matrix_larger_than_a_chunk_is_converted_row_by_row_alike() -> None:
    values = np.random.default_rng(1).normal(size=(70, 32_768)).astype(np.float32)  # two chunks of 32 rows and 6 more
    converted = convert(stored(values, WeightType.F32), "int8")
    np.testing.assert_array_equal(converted.data, quantize_q8_0(values))
