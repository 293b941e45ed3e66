"""Adapters by name: what requests hold stays, what nobody can ask for goes with its last request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.peft_folder import factors, write_peft

from qwenstack.core.errors import CapacityError, ConfigError, ModelFormatError, RequestError
from qwenstack.engine.adapters import AdapterSet
from qwenstack.engine.config import AdapterSource, EngineConfig
from qwenstack.kernels import load_kernels
from qwenstack.models import LoraAdapter, ModelConfig

CONFIG = ModelConfig.from_hf(
    {
        "model_type": "qwen3",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 16,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
)
ONE_ADAPTER_BYTES = 2 * 8 * 4 + 8 * 2 * 4
"""Factors of rank 2 of a matrix of 8 x 8 in float32, as the reference kernels keep them."""


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Five different adapters."""
    return [write_peft(tmp_path / str(seed), factors("1.self_attn.q_proj", 8, 8, seed=seed)) for seed in range(5)]


def adapter_set(**options: int) -> AdapterSet:
    return AdapterSet(CONFIG, load_kernels(1, "reference"), is_quantized=False, **options)


def hold(adapters: AdapterSet, name: str) -> LoraAdapter:
    """Begin a sequence with an adapter."""
    adapter = adapters.get(name)
    adapters.hold(adapter)
    return adapter


def test_an_unloaded_adapter_serves_its_requests_to_the_end_and_then_leaves_memory(folders: list[Path]):
    adapters = adapter_set()
    adapters.load("legal", folders[0])
    held = hold(adapters, "legal")
    assert held is not None
    adapters.unload("legal")
    with pytest.raises(RequestError, match=r"no adapter 'legal'; loaded: none") as error:
        hold(adapters, "legal")
    assert (error.value.param, error.value.code) == ("adapter", "model_not_found")
    assert adapters.num_bytes == ONE_ADAPTER_BYTES
    adapters.release(held)
    assert adapters.num_bytes == 0


def test_a_replaced_adapter_is_new_for_later_requests_only(folders: list[Path]):
    adapters = adapter_set()
    first = adapters.load("legal", folders[0])
    old = hold(adapters, "legal")
    second = adapters.load("legal", folders[1])
    new = hold(adapters, "legal")
    assert old is not None
    assert new is not None
    assert (old.digest, new.digest) == (first.digest, second.digest)
    assert first.digest != second.digest
    assert adapters.get("legal").digest == second.digest
    assert [(card.name, card.num_sequences) for card in adapters.infos()] == [("legal", 1)]


def test_the_same_files_loaded_again_are_the_same_version(folders: list[Path]):
    adapters = adapter_set()
    adapters.load("legal", folders[0])
    held = hold(adapters, "legal")
    adapters.load("legal", folders[0])
    assert hold(adapters, "legal") is held


def test_names_and_memory_are_bounded_and_a_refusal_changes_nothing(folders: list[Path], tmp_path: Path):
    adapters = adapter_set(max_adapters=2)
    adapters.load("a", folders[0])
    adapters.load("b", folders[1])
    with pytest.raises(CapacityError, match="`max_adapters`"):
        adapters.load("c", folders[2])
    wrong = write_peft(tmp_path / "wrong", factors("1.self_attn.q_proj", 9, 8))
    before = adapters.infos()
    with pytest.raises(ModelFormatError, match="another model"):
        adapters.load("a", wrong)
    assert adapters.infos() == before
    small = adapter_set(max_bytes=2 * ONE_ADAPTER_BYTES)
    small.load("a", folders[0])
    hold(small, "a")
    small.load("a", folders[1])
    with pytest.raises(CapacityError, match="bytes beside"):
        small.load("b", folders[2])
    small.load("a", folders[3])  # in the place of a version that nobody uses
    assert small.num_bytes == 2 * ONE_ADAPTER_BYTES


def test_over_quantised_weights_factors_are_kept_as_float16(folders: list[Path]):
    kernels = load_kernels(1)
    whole, half = (AdapterSet(CONFIG, kernels, is_quantized=quantized) for quantized in (False, True))
    assert half.load("a", folders[0]).num_bytes < whole.load("a", folders[0]).num_bytes


def test_values_that_are_not_finite_are_refused(tmp_path: Path):
    tensors = factors("0.self_attn.q_proj", 8, 8)
    next(iter(tensors.values()))[1, 3] = np.nan
    with pytest.raises(ModelFormatError, match="1 values are not finite"):
        adapter_set().load("a", write_peft(tmp_path, tensors))


@pytest.mark.parametrize("module", ["0.mlp.experts.1.up_proj", "0.mlp.gate", "0.self_attn.rotary_emb"])
def test_parts_that_take_no_adapter_are_refused(module: str, tmp_path: Path):
    with pytest.raises(ModelFormatError, match=r"take no adapters|take adapters"):
        adapter_set().load("a", write_peft(tmp_path, factors(module, 8, 8)))


@pytest.mark.parametrize("text", ["legal", "=x", "legal=", "a b=x", "../a=x", "é=x", "-a=x", "a" * 65 + "=x"])
def test_an_adapter_setting_has_a_plain_name_and_a_folder(text: str):
    with pytest.raises(ConfigError):
        EngineConfig(model_path=Path("m"), model_name="m", adapters=(text,))


def test_adapter_settings_are_read_as_names_and_folders():
    config = EngineConfig(model_path=Path("m"), model_name="m", adapters=("a=x/y", "b=z=1"))
    assert config.adapter_sources == (
        AdapterSource(name="a", path=Path("x/y")),
        AdapterSource(name="b", path=Path("z=1")),
    )
    assert AdapterSource.parse("a=~/x").path == Path.home() / "x"
    for wrong in (("a=x", "a=y"), ("a=x", "b=y", "c=z")):
        with pytest.raises(ConfigError, match="`max_adapters`"):
            EngineConfig(model_path=Path("m"), model_name="m", adapters=wrong, max_adapters=2)


class AdapterMachine(RuleBasedStateMachine):
    """Any order of loads, unloads, arrivals and ends, against a plain model of who holds what."""

    folders: list[Path]

    @initialize()
    def begin(self) -> None:
        self.adapters = adapter_set(max_adapters=3, max_bytes=5 * ONE_ADAPTER_BYTES)
        self.named: dict[str, str] = {}
        self.held: list[tuple[LoraAdapter, str]] = []

    @rule(name=st.sampled_from("abcd"), folder=st.integers(0, 4))
    def load(self, name: str, folder: int) -> None:
        try:
            card = self.adapters.load(name, self.folders[folder])
        except CapacityError:
            assert len(self.named) == 3 or self.adapters.num_bytes >= 4 * ONE_ADAPTER_BYTES
            return
        self.named[name] = card.digest

    @rule(name=st.sampled_from("abcd"))
    def unload(self, name: str) -> None:
        if name in self.named:
            self.adapters.unload(name)
            del self.named[name]
        else:
            with pytest.raises(RequestError):
                self.adapters.unload(name)

    @rule(name=st.sampled_from("abcd"))
    def arrive(self, name: str) -> None:
        if name in self.named:
            adapter = hold(self.adapters, name)
            assert adapter is not None
            assert adapter.digest == self.named[name]
            self.held.append((adapter, adapter.digest))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.held:
            adapter, digest = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            assert adapter.digest == digest
            self.adapters.release(adapter)

    @invariant()
    def memory_is_that_of_named_and_held_versions(self) -> None:
        if not hasattr(self, "adapters"):
            return
        assert {card.name: card.digest for card in self.adapters.infos()} == self.named
        assert self.adapters.num_bytes <= 5 * ONE_ADAPTER_BYTES
        if not self.named and not self.held:
            assert self.adapters.num_bytes == 0


def test_no_order_of_events_loses_or_keeps_an_adapter(folders: list[Path]):
    machine = type("Machine", (AdapterMachine,), {"folders": folders})
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
    machine.TestCase("runTest").runTest()
