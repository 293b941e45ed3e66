"""How memory is shared out, as a decision without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenstack.core.errors import CapacityError, ConfigError
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.loading import CachePlan, plan_cache

GB = 10**9


def decide(available: int, **options: Any) -> CachePlan:
    config = EngineConfig(model_path=Path("m"), model_name="m", **options)
    return plan_cache(config, trained_len=32_768, bytes_per_token=12_288, weight_bytes=GB, available_bytes=available)


def test_with_room_there_are_four_full_contexts() -> None:
    plan = decide(20 * GB)
    assert plan.max_model_len == 32_768
    assert plan.num_blocks == 4 * 2049


def test_a_tight_machine_gets_the_longest_context_that_fits() -> None:
    plan = decide(GB + GB // 5)
    assert 4096 <= plan.max_model_len < 32_768
    assert plan.num_blocks * 16 >= plan.max_model_len + 1
    assert plan.num_blocks * 16 * 12_288 <= GB // 5


def test_what_was_asked_for_is_not_shortened_in_silence() -> None:
    with pytest.raises(CapacityError, match="at most 1"):
        decide(GB + GB // 5, max_model_len=32_768)


def test_too_little_for_any_chat_names_the_need_and_a_smaller_choice() -> None:
    with pytest.raises(CapacityError, match=r"1\.0 GB for its weights.*smollm2-135m"):
        decide(GB + 1)


def test_lengths_and_memory_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="trained for 32768"):
        decide(20 * GB, max_model_len=40_000)
    with pytest.raises(ConfigError, match="kv_cache_memory_bytes"):
        decide(20 * GB, kv_cache_memory_bytes=1 << 20)
