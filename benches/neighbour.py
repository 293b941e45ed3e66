"""Measure what a busy neighbour on one core costs: decoding alone and beside a program that never stops, in turns.

The neighbour is tied to the last core that this process may use; the engine has a thread for each core, the neighbour's
included. One JSON line: tokens/s with and without, their ratio in each pair, and the longest step, for a stall would
not show in a median.

    python benches/neighbour.py --pairs 5
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

import numpy as np

from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.engine import Engine
from qwenstack.engine.loading import load_model, num_cores
from qwenstack.hub.pull import locate

_BUSY = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
_SETTLE_SECONDS = 0.3


@contextlib.contextmanager
def busy_core(core: int) -> Iterator[None]:
    """Keep a core busy with a process of normal priority."""
    with subprocess.Popen([sys.executable, "-c", _BUSY, str(core)]) as process:
        time.sleep(_SETTLE_SECONDS)
        try:
            yield
        finally:
            process.kill()


def decode(engine: Engine, prompt_token_ids: list[int], max_tokens: int) -> list[float]:
    """Return the seconds of each step that writes a token."""
    engine.add_request("one", prompt_token_ids, SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True))
    engine.step()
    seconds: list[float] = []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    config = EngineConfig(model_path=locate(arguments.model).path, model_name=arguments.model, max_model_len=2048)
    engine = Engine(load_model(config))
    rng = np.random.default_rng(0)
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    for _ in range(arguments.pairs + 1):
        prompt = rng.integers(0, 100_000, 16).tolist()
        alone.append(decode(engine, prompt, arguments.tokens))
        with busy_core(max(os.sched_getaffinity(0))):
            beside.append(decode(engine, prompt, arguments.tokens))
    alone, beside = alone[1:], beside[1:]  # the first pair warms up
    ratios = [sum(own) / sum(shared) for own, shared in zip(alone, beside, strict=True)]
    row = {
        "threads": num_cores(),
        "pairs": arguments.pairs,
        "tokens": arguments.tokens,
        "tokens_per_second_alone": round(median(len(run) / sum(run) for run in alone), 2),
        "tokens_per_second_beside": round(median(len(run) / sum(run) for run in beside), 2),
        "median_ratio": round(median(ratios), 3),
        "least_ratio": round(min(ratios), 3),
        "longest_step_alone_ms": round(max(map(max, alone)) * 1e3, 1),
        "longest_step_beside_ms": round(max(map(max, beside)) * 1e3, 1),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
