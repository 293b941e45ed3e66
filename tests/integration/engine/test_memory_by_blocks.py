"""The memory of keys and values grows with the blocks that are written, not with those that are planned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
from support.checkpoints import save_random
from support.toy import VOCABULARY, toy_model
from transformers import Qwen3Config

from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.engine import Engine
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.kernels import load_kernels
from qwenstack.models import Decoder, KVCache, WeightReader, kv_bytes_per_token, read_config

MIB = 1 << 20
BLOCK_SIZE = 16
MAX_MODEL_LEN = 32_768
PROMPT_TOKENS = 2000
SLACK = 24 * MIB
"""Buffers of a step, and pages of up to 2 MiB that are given whole to each of the eight arrays."""


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A random model with 32 KiB of keys and values a token, and a cache planned for four full contexts: 4 GiB."""
    config = Qwen3Config(
        hidden_size=32,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=32,
        num_hidden_layers=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=MAX_MODEL_LEN,
    )
    checkpoint = open_checkpoint(save_random(tmp_path, config))
    shape = read_config(checkpoint)
    assert kv_bytes_per_token(shape, np.dtype(np.float32)) == 32 << 10
    toy = toy_model(max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    model = dataclasses.replace(
        toy,
        decoder=Decoder(shape, WeightReader(checkpoint, shape), load_kernels(2, "auto")),
        kv_cache=KVCache.allocate(
            shape, num_blocks=4 * MAX_MODEL_LEN // BLOCK_SIZE, block_size=BLOCK_SIZE, dtype=np.dtype(np.float32)
        ),
    )
    return Engine(model)


def resident_bytes() -> int:
    return cast("int", cast("Any", psutil.Process()).memory_info().rss)


def answer(engine: Engine, *prompt_lengths: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    for index, length in enumerate(prompt_lengths):
        prompt = [token % VOCABULARY for token in range(length)]
        engine.add_request(str(index), prompt, params, RequestOptions(prefix_cache=False))
    while engine.has_work:
        assert all(delta.error is None for delta in engine.step())


def test_memory_grows_with_the_blocks_written_and_later_requests_use_them_again(engine: Engine) -> None:
    answer(engine, 600)  # warm: buffers of a step, threads
    before = resident_bytes()
    answer(engine, PROMPT_TOKENS)
    written = (PROMPT_TOKENS - 600) * (32 << 10)
    grown = resident_bytes() - before
    assert written - SLACK < grown < written + SLACK
    after_one = resident_bytes()
    for _ in range(2):
        answer(engine, PROMPT_TOKENS)
    assert resident_bytes() - after_one < SLACK
    answer(engine, PROMPT_TOKENS, PROMPT_TOKENS)
    assert resident_bytes() - after_one > PROMPT_TOKENS * (32 << 10) - SLACK
