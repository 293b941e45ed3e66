"""What a model file says of the work it makes: its vocabulary, and the bytes that a decoding step reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.models import kv_bytes_per_token, read_config
from qwenstack.tokenizer import Tokenizer

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One GGUF file."""

    path: Path
    num_bytes: int
    vocab_size: int
    """Without the rows that only pad the matrices."""
    weight_bytes_per_step: int
    """All weights; of an embedding that is no head, a row is looked up, which is nothing."""
    kv_bytes_per_token: int
    """In float16."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Look into a file; None: it is of a type that is not read here, which other engines may well run."""
        try:
            with open_checkpoint(path) as checkpoint:
                config = read_config(checkpoint)
                sizes = {name: tensor.data.nbytes for name, tensor in checkpoint.tensors.items()}
                num_tokens = Tokenizer.from_gguf(checkpoint.metadata).vocab_size
        except ModelFormatError:
            return None
        if _HEAD in sizes:
            sizes.pop(_EMBEDDING, None)
        return cls(
            path=path,
            num_bytes=path.stat().st_size,
            vocab_size=min(num_tokens, config.vocab_size),
            weight_bytes_per_step=sum(sizes.values()),
            kv_bytes_per_token=kv_bytes_per_token(config, np.dtype(np.float16)),
        )
