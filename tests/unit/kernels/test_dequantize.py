"""Stored bytes turn into the numbers that the `gguf` package and torch make of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import dequantize
from qwenstack.kernels.dequantize import FLOAT16_OFFSETS, bfloat16_to_float32, float32_to_bfloat16, unpack

QUANTIZED = [weight_type for weight_type in WeightType if not weight_type.is_float]


def random_rows(weight_type: WeightType, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Random bytes; only NaN and infinity among the float16 scales are made finite."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, blocks * weight_type.block_bytes), np.uint8)
    if not weight_type.is_float:
        by_block = data.reshape(-1, weight_type.block_bytes)
        for offset in FLOAT16_OFFSETS[weight_type]:
            by_block[:, offset + 1] &= 0xBF
    return data


@settings(max_examples=80, deadline=None)
@given(
    weight_type=st.sampled_from(list(WeightType)),
    rows=st.integers(1, 4),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_type_equals_the_gguf_package_bit_for_bit(weight_type, rows, blocks, seed):
    data = random_rows(weight_type, rows, blocks * (64 if weight_type.is_float else 1), seed)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(weight_type.gguf_id))
    actual = dequantize(data, weight_type)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(actual[is_number].view(np.uint32), expected[is_number].view(np.uint32))


@pytest.mark.parametrize("weight_type", QUANTIZED, ids=lambda weight_type: weight_type.name)
def test_parts_follow_the_one_formula(weight_type):
    data = random_rows(weight_type, 3, 2, seed=0)
    parts = unpack(data, weight_type)
    grouped = parts.codes.reshape(3, -1, parts.group_size).astype(np.float32) - parts.zero
    values = grouped * parts.scales[:, :, None] + (0 if parts.offsets is None else parts.offsets[:, :, None])
    np.testing.assert_array_equal(values.reshape(3, -1), dequantize(data, weight_type))


def test_rows_gathered_from_a_table_are_the_rows_of_the_table():
    data = random_rows(WeightType.Q5_0, 10, 4, seed=1)
    chosen = np.array([7, 0, 7])
    table = dequantize(data, WeightType.Q5_0)
    np.testing.assert_array_equal(dequantize(data[chosen], WeightType.Q5_0), table[chosen])
    np.testing.assert_array_equal(dequantize(data[3], WeightType.Q5_0), table[3:4])
    assert dequantize(data[:0], WeightType.Q5_0).shape == (0, 128)


@pytest.mark.parametrize("weight_type", list(WeightType), ids=lambda weight_type: weight_type.name)
def test_half_a_block_is_refused(weight_type):
    with pytest.raises(ValueError, match=weight_type.name):
        dequantize(np.zeros((2, weight_type.block_bytes * 3 - 1), np.uint8), weight_type)


def test_floats_have_no_parts():
    with pytest.raises(ValueError, match="F16"):
        unpack(np.zeros((1, 4), np.uint8), WeightType.F16)


def test_bfloat16_rounds_as_torch_does():
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    bits[:6] = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00000001, 0x7F800000, 0xFF800000]
    values = bits.view(np.float32)
    expected = torch.tensor(values).bfloat16()
    np.testing.assert_array_equal(bfloat16_to_float32(float32_to_bfloat16(values)), expected.float().numpy())
