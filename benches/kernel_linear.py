"""Measure the linear kernels alone: GB/s of weights read and GOP/s (two operations a weight and token).

One JSON line for each storage type, shape and number of tokens; weights are random bytes, and each product is run on
several copies in turn so that they come from memory and not from a cache.

    python benches/kernel_linear.py --types Q5_0 Q8_0 --tokens 1 512 --threads 2
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import Kernels, load_kernels
from qwenstack.kernels.dequantize import FLOAT16_OFFSETS

SHAPES = ((896, 896), (9728, 896), (896, 4864), (151936, 896))
"""`(out_features, in_features)` of Qwen2.5-0.5B: attention output, gate and up, down, head."""
_MIN_WORKING_SET_BYTES = 600 << 20
"""More than the last-level cache of the machines at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWeight:
    """A matrix of random codes with small scales."""

    weight_type: WeightType
    shape: tuple[int, int]
    data: np.ndarray


def random_weight(weight_type: WeightType, shape: tuple[int, int], rng: np.random.Generator) -> RandomWeight:
    """Return random bytes whose scales are finite."""
    rows, columns = shape
    data = rng.integers(0, 256, (rows, weight_type.row_bytes(columns)), np.uint8)
    if weight_type.is_float:
        bits = rng.normal(scale=0.01, size=shape).astype(np.float32).view(np.uint32)
        values = {
            WeightType.F32: bits,
            WeightType.F16: bits.view(np.float32).astype(np.float16),
            WeightType.BF16: (bits >> 16).astype(np.uint16),
        }[weight_type]
        data = values.view(np.uint8).reshape(rows, -1)
    else:
        blocks = data.reshape(-1, weight_type.block_bytes)
        for offset in FLOAT16_OFFSETS[weight_type]:
            scales = rng.normal(scale=0.01, size=(len(blocks), 1)).astype(np.float16)
            blocks[:, offset : offset + 2] = scales.view(np.uint8)
    return RandomWeight(weight_type=weight_type, shape=shape, data=data)


def measure(kernels: Kernels, weight: RandomWeight, num_tokens: int, seconds: float) -> dict[str, float]:
    """Return the median time of one product and what it makes of the machine."""
    rows, columns = weight.shape
    first = kernels.pack([weight])
    copies = 1 if num_tokens > 32 else max(1, _MIN_WORKING_SET_BYTES // first.num_bytes)
    packed = [first, *(kernels.pack([weight]) for _ in range(min(copies, 64) - 1))]
    x = np.random.default_rng(0).normal(size=(num_tokens, columns)).astype(np.float32)
    out = np.empty((num_tokens, rows), np.float32)
    for linear in packed:
        kernels.linear(x, linear, out)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        for linear in packed:
            kernels.linear(x, linear, out)
        times.append((time.perf_counter() - start) / len(packed))
    elapsed = median(times)
    return {
        "microseconds": round(elapsed * 1e6, 1),
        "gigabytes_per_second": round(first.num_bytes / elapsed / 1e9, 2),
        "gop_per_second": round(2 * rows * columns * num_tokens / elapsed / 1e9, 1),
    }


def main() -> None:
    """Print one JSON line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "BF16"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 16, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each case")
    arguments = parser.parse_args()
    kernels = load_kernels(arguments.threads, arguments.isa)
    rng = np.random.default_rng(0)
    for name in arguments.types:
        weight_type = WeightType[name]
        for shape in SHAPES:
            if shape[1] % weight_type.block_size:
                continue
            weight = random_weight(weight_type, shape, rng)
            for num_tokens in arguments.tokens:
                if shape[0] * num_tokens > 1 << 25:
                    continue  # nobody asks for the logits of a whole prompt
                case = {"kernels": kernels.name, "type": name, "shape": list(shape), "tokens": num_tokens}
                print(json.dumps(case | measure(kernels, weight, num_tokens, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
