"""Small random checkpoints that `transformers` saved, and one forward pass of ours over a whole text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.kernels import Kernels
from qwenstack.models import Decoder, KVCache, ModelConfig, PackedBatch, WeightReader, read_config

BLOCK_SIZE = 16


def randomise(model: torch.nn.Module) -> None:
    """Draw weights of standard deviation 1/sqrt(width); biases and norm weights at random too, so that none is idle."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / parameter.shape[-1] ** 0.5
        elif "norm" in name:
            parameter.data = 1.0 + 0.3 * noise
        else:
            parameter.data = 0.5 * noise


def save_random(folder: Path, config: transformers.PretrainedConfig, dtype: torch.dtype = torch.float32) -> Path:
    """Make a model of this configuration and save it as any user of transformers would."""
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    model.to(dtype).save_pretrained(folder)
    return folder


def reference_logits(folder: Path, token_ids: np.ndarray) -> np.ndarray:
    """Return the logits `[T, V]` of transformers in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.from_numpy(token_ids)[None]).logits[0].numpy()


def whole_text_batch(token_ids: np.ndarray) -> PackedBatch:
    """One sequence from its first token to its last, in blocks that are not in order."""
    size = len(token_ids)
    num_blocks = -(-size // BLOCK_SIZE)
    blocks = np.arange(num_blocks, dtype=np.int32)[::-1].copy()
    positions = np.arange(size, dtype=np.int64)
    return PackedBatch(
        token_ids=token_ids.astype(np.int64),
        positions=positions,
        slot_mapping=blocks[positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE,
        query_start=np.array([0, size], np.int32),
        kv_len=np.array([size], np.int32),
        block_table=blocks[None],
    )


def our_logits(
    path: Path,
    token_ids: np.ndarray,
    kernels: Kernels,
    *,
    change: Callable[[ModelConfig], ModelConfig] = lambda config: config,
    kv_dtype: type = np.float32,
) -> np.ndarray:
    """Return our logits `[T, V]` of a whole text, after an optional change of the configuration."""
    checkpoint = open_checkpoint(path)
    config = change(read_config(checkpoint))
    decoder = Decoder(config, WeightReader(checkpoint, config), kernels)
    batch = whole_text_batch(token_ids)
    cache = KVCache.allocate(config, num_blocks=batch.block_table.size, block_size=BLOCK_SIZE, dtype=np.dtype(kv_dtype))
    return decoder.logits(decoder.forward(batch, cache))
