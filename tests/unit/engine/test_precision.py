"""Which requests are computed how finely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engine.config import EngineConfig
from qwenstack.engine.loading import precision_policy
from qwenstack.engine.precision import PrecisionPolicy


def policy(num_parameters: int = 500_000_000, **options: Any) -> PrecisionPolicy:
    config = EngineConfig(model_path=Path("m"), model_name="m", **options)
    return precision_policy(config, num_parameters=num_parameters)


@given(length=st.integers(1, 1 << 20), limit=st.integers(0, 1 << 20))
def test_short_prompts_are_computed_finely_and_long_ones_as_chosen(length: int, limit: int) -> None:
    by_length = policy(activation_bits=8, short_prompt_tokens=limit)
    assert by_length.choose(length) == (16 if length <= limit else 8)
    assert by_length.choose(length) in by_length.classes


@given(length=st.integers(1, 1 << 20), bits=st.sampled_from([8, 16]))
def test_one_number_is_one_class(length: int, bits: int) -> None:
    fixed = policy(activation_bits=bits)
    assert fixed.choose(length) == bits
    assert fixed.classes == (bits,)
    assert str(fixed) == f"{bits} bits"


def test_small_models_are_computed_finely_where_nobody_says_otherwise() -> None:
    assert policy(135_000_000).choose(10_000) == 16
    assert policy(500_000_000).choose(10_000) == 8
    assert policy(135_000_000, activation_bits=8).choose(10_000) == 8


@pytest.mark.parametrize(("limit", "classes"), [(0, (8,)), (64, (8, 16))])
def test_two_classes_exist_only_where_both_can_be_chosen(limit: int, classes: tuple[int, ...]) -> None:
    assert policy(activation_bits=8, short_prompt_tokens=limit).classes == classes
    assert policy(activation_bits=16, short_prompt_tokens=limit).classes == (16,)
