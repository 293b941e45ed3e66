"""Measure what adapters cost while decoding: streams with an adapter each against the same streams without.

Random adapters of one rank on a real model; steps with and without them take turns, and the ratio of each pair is
taken, so that a busy machine slows both. One JSON line for each set of modules.

    python benches/lora.py --streams 8 --rank 16 --threads 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from qwenstack.core.weight_type import WeightType
from qwenstack.hub.cache import ModelCache
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.hub.pull import SilentProgress, pull
from qwenstack.kernels import load_kernels
from qwenstack.models import Decoder, KVCache, LoraAdapter, ModelConfig, PackedBatch, WeightReader, read_config
from qwenstack.models.lora import load_adapter, module_shapes

MODULES = {
    "q, v": ("self_attn.q_proj", "self_attn.v_proj"),
    "all linear": (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ),
}
BLOCK_SIZE = 16
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu`, with one thread, is what tells on a machine that others use too: it does not count the time they take."""


def write_adapter(folder: Path, config: ModelConfig, modules: tuple[str, ...], rank: int, seed: int) -> Path:
    """Write a PEFT folder with random factors in float32, as PEFT trains them."""
    rng = np.random.default_rng(seed)
    shapes = module_shapes(config)
    header: dict[str, object] = {}
    parts: list[bytes] = []
    position = 0
    for layer in range(config.num_hidden_layers):
        for module in modules:
            out_features, in_features = shapes[module]
            for name, shape in (("lora_A", (rank, in_features)), ("lora_B", (out_features, rank))):
                values = rng.normal(scale=0.02, size=shape).astype(np.float32).tobytes()
                header[f"base_model.model.model.layers.{layer}.{module}.{name}.weight"] = {
                    "dtype": "F32",
                    "shape": shape,
                    "data_offsets": [position, position + len(values)],
                }
                parts.append(values)
                position += len(values)
    raw = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(parts))
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def decode_batch(num_streams: int, position: int, adapters: tuple[LoraAdapter | None, ...]) -> PackedBatch:
    """The next token of each stream at a position."""
    blocks = position // BLOCK_SIZE + 1
    block_table = np.arange(num_streams * blocks, dtype=np.int32).reshape(num_streams, blocks)
    return PackedBatch(
        token_ids=np.arange(100, 100 + num_streams, dtype=np.int64),
        positions=np.full(num_streams, position, np.int64),
        slot_mapping=block_table[:, -1].astype(np.int64) * BLOCK_SIZE + position % BLOCK_SIZE,
        query_start=np.arange(num_streams + 1, dtype=np.int32),
        kv_len=np.full(num_streams, position + 1, np.int32),
        block_table=block_table,
        adapters=adapters,
    )


def step_ms(decoder: Decoder, batch: PackedBatch, cache: KVCache, clock: Callable[[], float]) -> float:
    """Return the milliseconds of a step with its logits, by one of the clocks."""
    start = clock()
    decoder.logits(decoder.forward(batch, cache))
    return (clock() - start) * 1e3


def main() -> None:
    """Print one JSON line for each set of modules and type of factors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--position", type=int, default=255, help="tokens that each stream has already")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--types", nargs="+", default=["F16", "F32"], help="in which the factors are kept")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(pull(arguments.model, cache=ModelCache.default(), progress=SilentProgress()).path)
    config = read_config(checkpoint)
    kernels = load_kernels(arguments.threads)
    decoder = Decoder(config, WeightReader(checkpoint, config), kernels)
    num_blocks = arguments.streams * (arguments.position // BLOCK_SIZE + 1)
    cache = KVCache.allocate(config, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=np.dtype(np.float16))
    plain = decode_batch(arguments.streams, arguments.position, ())
    for name, modules in MODULES.items():
        for factor_type in arguments.types:
            with tempfile.TemporaryDirectory() as folder:
                adapters = tuple(
                    load_adapter(
                        write_adapter(Path(folder) / str(seed), config, modules, arguments.rank, seed),
                        config,
                        kernels,
                        factor_type=WeightType[factor_type],
                    )
                    for seed in range(arguments.streams)
                )
            adapted = decode_batch(arguments.streams, arguments.position, adapters)
            clock = CLOCKS[arguments.clock]
            pairs = [
                (step_ms(decoder, plain, cache, clock), step_ms(decoder, adapted, cache, clock))
                for _ in range(arguments.pairs + 2)
            ][2:]
            ratios = sorted(with_ms / without_ms for without_ms, with_ms in pairs)
            case = {
                "kernels": kernels.name,
                "clock": arguments.clock,
                "modules": name,
                "factors": factor_type,
                "adapter_mb": round(sum(adapter.num_bytes for adapter in adapters) / 1e6, 1),
                "step_ms": round(median(without_ms for without_ms, _ in pairs), 1),
                "step_with_adapters_ms": round(median(with_ms for _, with_ms in pairs), 1),
                "ratio": round(median(ratios), 3),
                "ratio_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
            }
            print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
