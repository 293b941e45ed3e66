"""How memory is shared out, as a decision without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack.core.errors import CapacityError, ConfigError, RequestError
from qwenstack.core.messages import parse_messages
from qwenstack.core.protocols import ModelShape
from qwenstack.engine import LLM
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.loading import CachePlan, load_model, plan_cache
from qwenstack.engine.wire import Ready, encode_frame, event_decoder
from qwenstack.tokenizer import Tokenizer

GB = 10**9
TEMPLATES = Path(__file__).parents[2] / "data" / "templates"


def decide(available: int, *, trained_len: int = 32_768, yarn_from: int | None = 32_768, **options: Any) -> CachePlan:
    config = EngineConfig(model_path=Path("m"), model_name="m", **options)
    return plan_cache(
        config,
        trained_len=trained_len,
        yarn_from=yarn_from,
        bytes_per_token=12_288,
        weight_bytes=GB,
        available_bytes=available,
    )


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


@pytest.mark.parametrize(
    ("yarn_from", "max_model_len", "advice"),
    [
        (32_768, 131_072, r"at most that, or set `yarn_factor` to 4, which reaches 131072"),
        (32_768, 32_769, r"`yarn_factor` to 2, which reaches 65536"),
        (None, 131_072, r"Ask for at most that\.$"),
        (32_768, 33 * 32_768, r"Ask for at most that\.$"),
    ],
)
def test_a_length_beyond_the_trained_one_says_how_to_reach_it(
    yarn_from: int | None, max_model_len: int, advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice):
        decide(20 * GB, yarn_from=yarn_from, max_model_len=max_model_len)


def test_131072_tokens_of_the_default_model_fit_into_24_gigabytes() -> None:
    plan = decide(22 * GB, trained_len=131_072, max_model_len=131_072, yarn_factor=4.0)
    assert plan.max_model_len == 131_072
    assert plan.num_blocks * 16 * 12_288 <= 22 * GB // 4
    assert plan.num_blocks >= 2 * 131_072 // 16  # two such texts at once


def test_131072_tokens_on_a_small_machine_are_refused_with_the_length_that_fits() -> None:
    with pytest.raises(CapacityError, match=r"1\.6 GB for contexts of 131072 tokens; 2\.0 GB are free.* at most 81"):
        decide(2 * GB, trained_len=131_072, max_model_len=131_072, yarn_factor=4.0)
    assert decide(2 * GB, trained_len=131_072, yarn_factor=4.0).max_model_len < 82_000


def test_an_option_that_is_none_is_named_with_those_that_are() -> None:
    options: Any = {"gpu_memory_utilization": 0.9}
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization.*num_threads"):
        LLM("smollm2-135m", **options)


@pytest.mark.parametrize(
    ("template", "takes_tools", "thinks"),
    [("qwen3", True, True), ("qwen2.5", True, False), ("smollm2", False, False), ("xml_tools", True, True)],
)
def test_a_card_tells_what_the_files_say_and_reaches_the_server_whole(
    tmp_path: Path, template: str, takes_tools: bool, thinks: bool
) -> None:
    source = (TEMPLATES / f"{template}.jinja").read_text()
    path = write_tiny_gguf(tmp_path / "m.gguf", QWEN3_Q8, chat_template=source)
    card = load_model(EngineConfig(model_path=path, model_name="m-coder", max_model_len=64)).card
    assert card.chat_template == source
    assert (card.takes_tools, card.thinks, card.fills_gaps) == (takes_tools, thinks, False)
    stored = sum(tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors)
    assert card.shape == ModelShape(
        architecture="qwen3",
        file_format="gguf",
        size_bytes=stored,
        hidden_size=QWEN3_Q8.hidden_size,
        intermediate_size=QWEN3_Q8.intermediate_size,
        num_hidden_layers=QWEN3_Q8.num_layers,
        num_attention_heads=QWEN3_Q8.num_heads,
        num_key_value_heads=QWEN3_Q8.num_kv_heads,
        head_dim=QWEN3_Q8.head_dim,
    )
    assert event_decoder.decode(encode_frame(Ready(card))[4:]) == Ready(card)


def test_a_bare_text_is_not_a_conversation() -> None:
    with pytest.raises(RequestError, match="list of messages"):
        parse_messages("Hi")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "change",
    [
        {"isa": "sse2"},
        {"kv_cache_dtype": "int4"},
        {"activation_bits": 4},
        {"max_num_seqs": 600},
        {"num_threads": 0},
        {"yarn_factor": 0.5},
        {"yarn_factor": 64.0},
    ],
)
def test_a_wrong_setting_is_refused_at_the_door(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        EngineConfig(model_path=Path("m"), model_name="m", **change)


@pytest.mark.parametrize("name", ["Qwen2.5-Coder-0.5B", "qwen3-0.6b"])
def test_marks_in_a_vocabulary_make_no_model_for_code(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "fills_gaps", True)
    path = write_tiny_gguf(tmp_path / "m.gguf", QWEN3_Q8)
    card = load_model(EngineConfig(model_path=path, model_name=name, max_model_len=64)).card
    assert card.fills_gaps == ("Coder" in name)
