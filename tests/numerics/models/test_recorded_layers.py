"""All layers in one call give the bits that operation after operation gives, whatever is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapters import batch_of
from support.checkpoints import BLOCK_SIZE
from support.one_by_one import OneByOne
from support.peft_folder import factors, write_peft
from support.tiny_gguf import QWEN2_Q5, QWEN3_Q8, TinyShape, write_tiny_gguf

from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.kernels import ActivationBits, Isa, load_kernels, supported_isas
from qwenstack.models import Decoder, KVCache, LoraAdapter, WeightReader, load_adapter, read_config

SHAPES = {"qwen2": QWEN2_Q5, "qwen3": QWEN3_Q8}


def open_decoder(path: Path, kernels: Any) -> Decoder:
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint)
    return Decoder(config, WeightReader(checkpoint, config), kernels)


def some_adapters(folder: Path, decoder: Decoder, shape: TinyShape) -> tuple[LoraAdapter, LoraAdapter]:
    """One that changes every product of the first layer, and one that changes a single matrix of the second."""
    width, ffn = shape.hidden_size, shape.intermediate_size
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = {
        "self_attn.q_proj": (q_size, width),
        "self_attn.v_proj": (kv_size, width),
        "self_attn.o_proj": (width, q_size),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
    }
    wide: dict[str, np.ndarray] = {}
    for seed, (name, (out_features, in_features)) in enumerate(sizes.items()):
        wide |= factors(f"0.{name}", out_features, in_features, seed=seed)
    narrow = factors("1.mlp.up_proj", ffn, width, seed=9)
    paths = write_peft(folder / "wide", wide), write_peft(folder / "narrow", narrow)
    first, second = (load_adapter(path, decoder.config, decoder.kernels) for path in paths)
    return first, second


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("cache_dtype", [np.float16, np.int8])
def test_a_recording_is_its_operations(
    name: str, isa: Isa, bits: ActivationBits, cache_dtype: type, tmp_path: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", SHAPES[name])
    kernels: Any = load_kernels(2, isa, activation_bits=bits)
    recorded, one_by_one = open_decoder(path, kernels), open_decoder(path, OneByOne(kernels))
    wide, narrow = some_adapters(tmp_path, recorded, SHAPES[name])
    rng = np.random.default_rng(7)
    for sizes, adapters in (
        ((1,), ()),
        ((1, 1, 1, 1, 1), ()),
        ((40, 1, 19), ()),
        ((1, 1), (wide, None)),
        ((3, 70, 1, 1), (None, wide, narrow, wide)),
    ):
        texts = [rng.integers(0, 256, size) for size in sizes]
        batch = batch_of(texts, adapters)
        caches = [
            KVCache.allocate(
                recorded.config, num_blocks=batch.block_table.size, block_size=BLOCK_SIZE, dtype=np.dtype(cache_dtype)
            )
            for _ in range(2)
        ]
        x_TD = recorded.forward(batch, caches[0])
        expected_TD = one_by_one.forward(batch, caches[1])
        assert x_TD.tobytes() == expected_TD.tobytes()
        for own, other in zip(caches[0].layers, caches[1].layers, strict=True):
            assert all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in zip(own, other, strict=True))


def test_adapters_matter_above(tmp_path: Path) -> None:
    decoder = open_decoder(write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8), load_kernels(2, "auto"))
    texts = [np.arange(9)]
    outputs = [
        decoder.forward(
            batch, KVCache.allocate(decoder.config, num_blocks=8, block_size=BLOCK_SIZE, dtype=np.dtype(np.float32))
        )
        for batch in (
            batch_of(texts, adapters)
            for adapters in ((), *((adapter,) for adapter in some_adapters(tmp_path, decoder, QWEN3_Q8)))
        )
    ]
    assert all(np.abs(output - outputs[0]).max() > 1e-3 for output in outputs[1:])
