"""Keys and values that lie on users' disks are the ones that this code computes, or their names are others.

Fails when a change gives other bits: then raise `NUMERICS` in `qwenstack.engine.cache_key`, and put the values that the
failure prints here. Until a version with the last change was published, only the values need to change.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from support.checkpoints import BLOCK_SIZE, whole_text_batch

from qwenstack.engine.cache_key import NUMERICS, numpy_probe
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.kernels import load_kernels
from qwenstack.models import Decoder, KVCache, WeightReader, read_config

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]

RECORDED = {
    "numerics": 1,
    "numpy": "5db5ceb300a2da4278106aa2f1508b29246faa3a8823bf549690b4906c1c509b",
    ("smollm2_gguf", 8): "b878d7a9b5fc9c0e4667fd374820d6b5a14f3ae2fc2234866396563b100b84e0",
    ("smollm2_gguf", 16): "e158ba4905212ce2c3a6ea9c6646c863917720f362aafa3910df8c8b99f8a4fe",
    ("coder_gguf", 8): "591461bf28ba3edf9a2d5546a5090b54472618888faa253a937f282f8f93dcb7",
}
"""SHA-256 of the caches, float16, after 40 tokens; recorded on an AMD EPYC, AVX2 and scalar alike."""


@pytest.mark.parametrize(("model", "activation_bits"), [("smollm2_gguf", 8), ("smollm2_gguf", 16), ("coder_gguf", 8)])
def test_cached_keys_and_values_keep_their_bits(
    model: str, activation_bits: Literal[8, 16], request: pytest.FixtureRequest
) -> None:
    if numpy_probe().hex() != RECORDED["numpy"]:
        pytest.skip("numpy gives other bits here; caches of the machine that recorded have other names")
    assert RECORDED["numerics"] == NUMERICS
    path: Path = request.getfixturevalue(model)
    assert bits_of(path, activation_bits) == RECORDED[(model, activation_bits)]


def bits_of(path: Path, activation_bits: Literal[8, 16]) -> str:
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint)
    kernels = load_kernels(2, "auto", activation_bits=activation_bits)
    decoder = Decoder(config, WeightReader(checkpoint, config), kernels)
    batch = whole_text_batch(np.arange(100, 140))
    cache = KVCache.allocate(config, num_blocks=3, block_size=BLOCK_SIZE, dtype=np.dtype(np.float16))
    decoder.forward(batch, cache)
    return hashlib.sha256(b"".join(array.tobytes() for layer in cache.layers for array in layer)).hexdigest()
