"""How memory is shared out, as a decision without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenstack.core.errors import CapacityError, ConfigError, RequestError
from qwenstack.core.messages import parse_messages
from qwenstack.engine import LLM
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


def test_an_option_that_is_none_is_named_with_those_that_are() -> None:
    options: Any = {"gpu_memory_utilization": 0.9}
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization.*num_threads"):
        LLM("smollm2-135m", **options)


def test_a_bare_text_is_not_a_conversation() -> None:
    with pytest.raises(RequestError, match="list of messages"):
        parse_messages("Hi")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "change",
    [{"isa": "sse2"}, {"kv_cache_dtype": "int4"}, {"activation_bits": 4}, {"max_num_seqs": 600}, {"num_threads": 0}],
)
def test_a_wrong_setting_is_refused_at_the_door(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        EngineConfig(model_path=Path("m"), model_name="m", **change)
