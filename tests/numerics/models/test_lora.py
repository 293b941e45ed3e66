"""Adapters that PEFT saved, on checkpoints that transformers saved: our logits are those of PEFT's merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import ALL_LINEAR, ATTENTION, batch_of, merged_logits, save_adapter
from support.checkpoints import BLOCK_SIZE, reference_logits, save_random
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from qwenstack.core.errors import ModelFormatError
from qwenstack.core.weight_type import WeightType
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.kernels import Kernels, load_kernels
from qwenstack.models import Decoder, KVCache, PackedBatch, WeightReader, load_adapter, merge_adapter, read_config

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""PEFT 0.21 asks transformers in a way that the next one drops."""

LOGIT_TOLERANCE = 5e-4
"""Largest error as a share of the logits' deviation, half of what `docs/adapters.md` promises. Changes larger than the
weights amplify float32 rounding: 1.7e-4 was the most, and 2e-5 without an adapter."""
HALF_TOLERANCE = 0.03
"""Here the changes are larger than the weights, which no training gives, and three random layers amplify."""


def sizes(width: int, heads: int, kv_heads: int, head_dim: int, ffn: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "num_hidden_layers": 3,
        "vocab_size": 331,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


MODELS: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**sizes(70, 7, 1, 10, 93)),
    "qwen3": Qwen3Config(**sizes(52, 6, 3, 10, 77), tie_word_embeddings=True),
    "llama": LlamaConfig(**sizes(84, 6, 2, 14, 111)),
    "qwen3-moe": Qwen3MoeConfig(
        **sizes(40, 4, 2, 12, 50), num_experts=5, num_experts_per_tok=2, moe_intermediate_size=21, norm_topk_prob=True
    ),
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "all linear layers": {},
    "q and v, rank 16": {"target_modules": ["q_proj", "v_proj"], "r": 16, "lora_alpha": 32},
    "rank 1, one layer": {"r": 1, "lora_alpha": 1, "layers_to_transform": [1]},
    "gate only, by the root of the rank": {"target_modules": ["gate_proj"], "r": 20, "use_rslora": True},
    "ranks and alphas of single modules": {
        "rank_pattern": {"q_proj": 3, "^model.layers.1.self_attn.v_proj": 17, "layers.2.mlp.down_proj": 5},
        "alpha_pattern": {"self_attn.q_proj": 7, "up_proj": 30},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="module", params=["reference", "auto"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load_kernels(2, request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family."""
    return {name: save_random(tmp_path_factory.mktemp(name), config) for name, config in MODELS.items()}


@pytest.fixture(scope="module")
def adapters(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Each kind of adapter for each dense family, and one for the attention of the mixture of experts."""
    made = {("qwen3-moe", "attention"): {"target_modules": list(ATTENTION)}}
    made |= {(model, kind): config for model in ("qwen2", "qwen3", "llama") for kind, config in ADAPTERS.items()}
    return {
        key: save_adapter(folders[key[0]], tmp_path_factory.mktemp("adapter"), seed=seed, **config)
        for seed, (key, config) in enumerate(made.items())
    }


def random_ids(size: int = 41, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 331, size)


def run(decoder: Decoder, batch: PackedBatch) -> np.ndarray:
    num_blocks = batch.block_table.size
    cache = KVCache.allocate(decoder.config, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=np.dtype(np.float32))
    return decoder.logits(decoder.forward(batch, cache))


def open_decoder(folder: Path, kernels: Kernels, merged: Path | None = None) -> Decoder:
    checkpoint = open_checkpoint(folder)
    config = read_config(checkpoint)
    reader = WeightReader(checkpoint, config)
    return Decoder(config, reader if merged is None else merge_adapter(merged, reader, config), kernels)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / theirs.std())


@pytest.mark.parametrize(
    ("model", "kind"),
    [("qwen3-moe", "attention"), *((model, kind) for model in ("qwen2", "qwen3", "llama") for kind in ADAPTERS)],
)
def test_served_and_merged_logits_are_those_of_peft(
    model: str,
    kind: str,
    folders: dict[str, Path],
    adapters: dict[tuple[str, str], Path],
    kernels: Kernels,
) -> None:
    base, adapter = folders[model], adapters[model, kind]
    theirs = merged_logits(base, adapter, random_ids())
    assert relative_error(reference_logits(base, random_ids()), theirs) > 0.1, "the adapter must matter"
    decoder = open_decoder(base, kernels)
    loaded = load_adapter(adapter, decoder.config, kernels)
    served = relative_error(run(decoder, batch_of([random_ids()], (loaded,))), theirs)
    merged = relative_error(run(open_decoder(base, kernels, adapter), batch_of([random_ids()])), theirs)
    print(f"largest error {max(served, merged):.1e} of the logits' deviation")
    assert served <= LOGIT_TOLERANCE
    assert merged <= LOGIT_TOLERANCE


@pytest.mark.parametrize("model", ["qwen2", "qwen3", "llama"])
def test_in_a_mixed_batch_each_sequence_has_the_bits_it_has_alone(
    model: str, folders: dict[str, Path], adapters: dict[tuple[str, str], Path], kernels: Kernels
) -> None:
    decoder = open_decoder(folders[model], kernels)
    first, second, third = (load_adapter(adapters[model, kind], decoder.config, kernels) for kind in list(ADAPTERS)[:3])
    own = (None, first, first, second, None, third, first)
    texts = [random_ids(size, seed=size) for size in (3, 1, 22, 9, 17, 1, 5)]
    together = run(decoder, batch_of(texts, own))
    ends = np.cumsum([len(text) for text in texts])
    for text, adapter, end in zip(texts, own, ends, strict=True):
        alone = run(decoder, batch_of([text], () if adapter is None else (adapter,)))
        assert np.array_equal(together[end - len(text) : end], alone)


def test_stored_in_float16_an_adapter_gives_nearly_the_same(
    folders: dict[str, Path], adapters: dict[tuple[str, str], Path], kernels: Kernels
) -> None:
    decoder = open_decoder(folders["qwen3"], kernels)
    path = adapters["qwen3", "all linear layers"]
    whole = load_adapter(path, decoder.config, kernels)
    half = load_adapter(path, decoder.config, kernels, factor_type=WeightType.F16)
    exact, rounded = (run(decoder, batch_of([random_ids()], (adapter,))) for adapter in (whole, half))
    assert 0 < relative_error(rounded, exact) < HALF_TOLERANCE
    assert half.digest == whole.digest


def test_merging_keeps_the_type_of_the_checkpoint(tmp_path: Path, kernels: Kernels) -> None:
    base = save_random(tmp_path / "base", MODELS["qwen3"], torch.bfloat16)
    path = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], dtype=torch.bfloat16)
    checkpoint = open_checkpoint(base)
    config = read_config(checkpoint)
    reader = WeightReader(checkpoint, config)
    merged = merge_adapter(path, reader, config)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        changed = merged.matrix(name, config.q_size, config.hidden_size)
        assert changed.weight_type is WeightType.BF16
        assert not np.array_equal(changed.data, reader.matrix(name, config.q_size, config.hidden_size).data)
    kept = "model.layers.0.self_attn.k_proj.weight"
    assert merged.matrix(kept, config.kv_size, config.hidden_size) is reader.matrix(
        kept, config.kv_size, config.hidden_size
    )
    assert (merged.num_bytes, merged.prevailing_type) == (reader.num_bytes, WeightType.BF16)


@pytest.mark.parametrize(
    ("trained_for", "used_on", "targets", "reason"),
    [
        ("llama", "qwen2", ["q_proj"], "It was trained for another model"),
        ("qwen3", "qwen3-moe", ["down_proj"], "mixture of experts"),
        ("qwen3-moe", "qwen3-moe", ["gate"], "'target_parameters' is set: it changes parameters of experts"),
    ],
)
def test_an_adapter_of_another_model_or_part_is_refused_with_the_reason(
    trained_for: str, used_on: str, targets: list[str], reason: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    kernels = load_kernels(1)
    path = save_adapter(folders[trained_for], tmp_path, target_modules=targets)
    decoder = open_decoder(folders[used_on], kernels)
    with pytest.raises(ModelFormatError, match=reason):
        load_adapter(path, decoder.config, kernels)
    with pytest.raises(ModelFormatError, match=reason):
        open_decoder(folders[used_on], kernels, path)


def test_an_adapter_of_a_deeper_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shallow = MODELS["qwen3"].to_dict() | {"num_hidden_layers": 2, "layer_types": None}
    kernels = load_kernels(1)
    decoder = open_decoder(save_random(tmp_path / "base", Qwen3Config(**shallow)), kernels)
    path = save_adapter(folders["qwen3"], tmp_path / "adapter", target_modules=list(ALL_LINEAR))
    with pytest.raises(ModelFormatError, match="this model has 2 layers"):
        load_adapter(path, decoder.config, kernels)
