"""Blocks of the key/value cache as bytes."""

from __future__ import annotations

import numpy as np
import pytest

from qwenstack.kernels.kv_rows import CACHE_DTYPES
from qwenstack.models import KVCache, ModelConfig, kv_bytes_per_token

BLOCK_SIZE = 4


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig.from_hf(
        {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 60,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "vocab_size": 50,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
        }
    )


def random_cache(config: ModelConfig, dtype: np.dtype, seed: int) -> KVCache:
    cache = KVCache.allocate(config, num_blocks=5, block_size=BLOCK_SIZE, dtype=dtype)
    rng = np.random.default_rng(seed)
    for layer in cache.layers:
        for array in layer:
            array.view(np.uint8)[...] = rng.integers(0, 256, array.view(np.uint8).shape, np.uint8)
    return cache


def as_bytes(cache: KVCache, block: int) -> list[bytes]:
    return [array[block].tobytes() for layer in cache.layers for array in layer]


@pytest.mark.parametrize("dtype", CACHE_DTYPES, ids=str)
def test_a_block_survives_the_way_through_bytes_and_no_other_changes(dtype: np.dtype, config: ModelConfig) -> None:
    source, target = random_cache(config, dtype, 0), random_cache(config, dtype, 1)
    before = [as_bytes(target, block) for block in range(5)]
    payload = source.read_block(3)
    assert payload.tobytes() == b"".join(as_bytes(source, 3))
    target.write_block(1, payload.tobytes())
    assert as_bytes(target, 1) == as_bytes(source, 3)
    for block in (0, 2, 3, 4):
        assert as_bytes(target, block) == before[block]


@pytest.mark.parametrize("dtype", CACHE_DTYPES, ids=str)
def test_the_memory_planned_for_a_token_is_what_a_block_takes(dtype: np.dtype, config: ModelConfig) -> None:
    cache = random_cache(config, dtype, 0)
    assert cache.block_bytes() == BLOCK_SIZE * kv_bytes_per_token(config, dtype)
    assert 5 * cache.block_bytes() == sum(array.nbytes for layer in cache.layers for array in layer)


def test_a_block_can_be_read_into_memory_that_is_there(config: ModelConfig) -> None:
    cache = random_cache(config, np.dtype(np.int8), 0)
    buffer = np.zeros(cache.block_bytes(), np.uint8)
    assert cache.read_block(2, into=buffer) is buffer
    np.testing.assert_array_equal(buffer, cache.read_block(2))


def test_a_payload_of_another_cache_is_refused(config: ModelConfig) -> None:
    cache, other = (random_cache(config, np.dtype(dtype), 0) for dtype in (np.int8, np.float16))
    with pytest.raises(ValueError, match=f"A block has {cache.block_bytes()} bytes"):
        cache.write_block(0, other.read_block(0))
    with pytest.raises(ValueError, match="A block has"):
        cache.read_block(0, into=np.zeros(3, np.uint8))
