"""Measure how fast weights of a type get into the layout that the kernels read: bytes of the file a second.

One JSON line for each type, the best of some repetitions of one random matrix.

    python benches/packing.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from qwenstack.core.weight_type import WeightType
from qwenstack.hub.stored_tensor import stored_bytes, view_tensor
from qwenstack.kernels import load_kernels

SHAPE = (4864, 2048)
TYPES = ("Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "F16")


def main() -> None:
    """Print one JSON line for each type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    kernels = load_kernels(arguments.threads)
    rng = np.random.default_rng(0)
    for name in TYPES:
        weight_type = WeightType[name]
        raw = rng.integers(0, 256, stored_bytes(weight_type, SHAPE), dtype=np.uint8)
        tensor = view_tensor("random", weight_type, SHAPE, raw)
        seconds: list[float] = []
        for _ in range(arguments.repetitions):
            start = time.perf_counter()
            kernels.pack([tensor])
            seconds.append(time.perf_counter() - start)
        print(
            json.dumps({"type": name, "kernels": kernels.name, "mb_per_second": round(raw.nbytes / min(seconds) / 1e6)})
        )


if __name__ == "__main__":
    main()
