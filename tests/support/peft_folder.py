"""A PEFT folder written by hand, without PEFT: one module changed, and whatever a test wants to be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model.model.layers."


def factors(module: str, out_features: int, in_features: int, rank: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the two tensors of a module such as `0.self_attn.q_proj`."""
    rng = np.random.default_rng(seed)
    return {
        f"{PREFIX}{module}.lora_A.weight": rng.normal(size=(rank, in_features)).astype(np.float32),
        f"{PREFIX}{module}.lora_B.weight": rng.normal(size=(out_features, rank)).astype(np.float32),
    }


def write_peft(folder: Path, tensors: dict[str, np.ndarray], **settings: object) -> Path:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
