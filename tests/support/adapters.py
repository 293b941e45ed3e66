"""Random LoRA adapters, made and saved by PEFT, and batches of several sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from qwenstack.models import LoraAdapter, PackedBatch
from support.checkpoints import BLOCK_SIZE

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def save_adapter(base: Path, folder: Path, *, seed: int = 1, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """Train nothing: draw both factors, so that the change is about as large as the weights, and save as users do."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options: dict[str, Any] = {"r": 8, "lora_alpha": 12, "target_modules": list(ALL_LINEAR), "task_type": "CAUSAL_LM"}
    tuned = peft.get_peft_model(model, peft.LoraConfig(**options | config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (noise / parameter.shape[-1] ** 0.5).to(dtype)
    tuned.save_pretrained(folder)
    return folder


def merged_logits(base: Path, adapter: Path, token_ids: np.ndarray) -> np.ndarray:
    """Return the logits `[T, V]` of transformers in float32 after PEFT has merged the adapter into the model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        return merged(torch.from_numpy(token_ids)[None]).logits[0].numpy()


def batch_of(texts: list[np.ndarray], adapters: tuple[LoraAdapter | None, ...] = ()) -> PackedBatch:
    """Several whole texts in one batch, each in blocks of its own."""
    sizes = [len(text) for text in texts]
    num_blocks = max(-(-size // BLOCK_SIZE) for size in sizes)
    block_table = np.arange(len(texts) * num_blocks, dtype=np.int32).reshape(len(texts), num_blocks)
    positions = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
    row = np.repeat(np.arange(len(texts)), sizes)
    slots = block_table[row, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    return PackedBatch(
        token_ids=np.concatenate(texts).astype(np.int64),
        positions=positions,
        slot_mapping=slots,
        query_start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        kv_len=np.array(sizes, np.int32),
        block_table=block_table,
        adapters=adapters,
    )
