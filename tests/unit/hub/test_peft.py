"""PEFT folders: the sum is read, everything else is refused by name, and hostile files do no harm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.peft_folder import PREFIX, factors, write_peft

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.peft import read_adapter

Q = "0.self_attn.q_proj"


def test_factors_come_by_module_with_alpha_over_rank(tmp_path: Path):
    adapter = read_adapter(write_peft(tmp_path, factors(Q, 6, 5) | factors("1.mlp.up_proj", 7, 5)))
    assert set(adapter.factors) == {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"}
    q = adapter.factors["model.layers.0.self_attn.q_proj"]
    assert (q.up.shape, q.down.shape, q.rank, q.scale) == ((6, 2), (2, 5), 2, 2.0)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 10}}, 5.0),
        ({"alpha_pattern": {"self_attn.q_proj": 10}}, 5.0),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 10}}, 5.0),
        ({"alpha_pattern": {"^q_proj": 10}}, 2.0),
        ({"alpha_pattern": {"proj": 10, "attn.q_proj": 10}}, 2.0),
        ({"r": 9, "rank_pattern": {"q_proj": 2}}, 2.0),
    ],
)
def test_patterns_name_modules_by_the_end_of_their_name(changes: dict[str, object], scale: float, tmp_path: Path):
    (read,) = read_adapter(write_peft(tmp_path, factors(Q, 6, 5), **changes)).factors.values()
    assert read.scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "'peft_type' is 'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules"),
        ({"bias": "all"}, "'bias' is 'all'"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"alora_invocation_tokens": [1]}, "a part of the prompt"),
        ({"something_new": 1}, "'something_new' is set"),
        ({"r": 3}, "has rank 2; 'adapter_config.json' says 3|says 3"),
        ({"r": 0}, "'r' is 0"),
        ({"r": True}, "'r' is True"),
        ({"lora_alpha": -1}, "'lora_alpha' is -1"),
        ({"lora_alpha": 1e300}, "'lora_alpha' is 1e"),
        ({"use_rslora": "yes"}, "'use_rslora' is 'yes'"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "no regular expressions"),
        ({"rank_pattern": ["q_proj"]}, "'rank_pattern' is not an object"),
    ],
)
def test_what_is_not_a_plain_sum_is_refused_with_the_reason(changes: dict[str, object], reason: str, tmp_path: Path):
    with pytest.raises(ModelFormatError, match=reason):
        read_adapter(write_peft(tmp_path, factors(Q, 6, 5), **changes))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "no tensors"),
        ({f"{PREFIX}{Q}.lora_A.weight": np.zeros((2, 5), np.float32)}, "only one of"),
        (factors(Q, 6, 5) | {f"{PREFIX}{Q}.lora_B.weight": np.zeros((6, 3), np.float32)}, "must be one rank"),
        (factors(Q, 6, 5) | {f"{PREFIX}{Q}.lora_B.weight": np.zeros((6, 2, 1), np.float32)}, "has two sizes"),
        (factors(Q, 6, 5) | {f"{PREFIX}{Q}.lora_B.weight": np.zeros((0, 2), np.float32)}, "has two sizes"),
        ({f"{PREFIX}{Q}.lora_magnitude_vector": np.zeros(6, np.float32)}, "not a LoRA factor"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((2, 5), np.float32)}, "not a LoRA factor"),
        (factors(Q, 6, 5, rank=1025), "at most 1024"),
    ],
)
def test_tensors_that_are_no_pairs_of_factors_are_refused(tensors: dict[str, np.ndarray], reason: str, tmp_path: Path):
    with pytest.raises(ModelFormatError, match=reason):
        read_adapter(write_peft(tmp_path, tensors))


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path):
    write_peft(tmp_path, factors(Q, 6, 5))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelFormatError, match=r"pickle.*save_pretrained"):
        read_adapter(tmp_path)


def test_a_path_that_is_no_adapter_is_told_whole_with_what_belongs_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_peft(tmp_path / "half", factors(Q, 6, 5))
    (tmp_path / "half" / "adapter_model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    for path, reason in (
        ("missing", "there is no such folder"),
        ("half/adapter_config.json", "it is a file"),
        ("empty", "it has no 'adapter_config.json'"),
        ("half", "it has no 'adapter_model.safetensors'"),
    ):
        with pytest.raises(ModelFormatError) as refusal:
            read_adapter(Path(path))
        assert str(refusal.value) == (
            f"The adapter '{tmp_path / path}' cannot be used: {reason}. Give the folder that PEFT's "
            "'save_pretrained' wrote, with 'adapter_config.json' and 'adapter_model.safetensors' in it."
        )


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path):
    folder = write_peft(tmp_path / "adapter", factors(Q, 6, 5))
    (folder / "adapter_model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(ModelFormatError, match="outside"):
        read_adapter(folder)


def test_the_digest_changes_with_either_file(tmp_path: Path):
    digests = {
        read_adapter(write_peft(tmp_path / str(index), factors(Q, 6, 5, seed=seed), lora_alpha=alpha)).digest
        for index, (seed, alpha) in enumerate([(0, 4), (0, 8), (1, 4)])
    }
    assert len(digests) == 3
    again = write_peft(tmp_path / "again", factors(Q, 6, 5), lora_alpha=4)
    assert read_adapter(again).digest in digests


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_an_adapter_or_a_typed_error(data: st.DataObject, tmp_path: Path):
    folder = write_peft(tmp_path, factors(Q, 6, 5))
    name = data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    raw = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(1, len(raw))) :]
    (folder / name).write_bytes(raw)
    try:
        adapter = read_adapter(folder)
    except ModelFormatError:
        return
    assert all(read.up.shape[1] == read.rank for read in adapter.factors.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "use_dora", "other"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS | st.just("init_lora_weights"), JSON, max_size=4))
def test_any_settings_give_an_adapter_or_a_typed_error(changes: dict[str, object], tmp_path: Path):
    folder = write_peft(tmp_path, factors(Q, 6, 5))
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    try:
        (read,) = read_adapter(folder).factors.values()
    except ModelFormatError:
        return
    assert 0 < read.scale <= 1e6
