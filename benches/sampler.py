"""Measure how long the next token of one answer takes to choose, by the filters that a request asks for.

Rows are those that a model gives: a few likely tokens over a broad rest. One JSON line for each kind of request.

    python benches/sampler.py
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import numpy as np

from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.sampler import TokenHistory, choose_token

VOCABULARY = 151_936
NUM_ROWS = 20
LIKELY_TOKENS = 30
REQUESTS = {
    "greedy": SamplingParams(temperature=0.0),
    "Qwen's defaults": SamplingParams(temperature=0.7, top_p=0.8, top_k=20),
    "defaults, repetition penalty": SamplingParams(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1),
    "min-p": SamplingParams(temperature=1.0, min_p=0.05),
    "top-p": SamplingParams(temperature=1.0, top_p=0.95),
    "temperature": SamplingParams(temperature=1.0),
}


def random_rows(rng: np.random.Generator) -> list[np.ndarray]:
    """Return rows of logits `[V]` float32."""
    rows = [rng.normal(scale=2.0, size=VOCABULARY).astype(np.float32) for _ in range(NUM_ROWS)]
    for row in rows:
        row[rng.integers(0, VOCABULARY, LIKELY_TOKENS)] += rng.uniform(10, 20, LIKELY_TOKENS).astype(np.float32)
    return rows


def main() -> None:
    """Print one JSON line for each kind of request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    repetitions = parser.parse_args().repetitions
    rng = np.random.default_rng(0)
    rows = random_rows(rng)
    for name, params in REQUESTS.items():
        times: list[float] = []
        for at in range(repetitions):
            history = TokenHistory(np.arange(500, dtype=np.int64))
            start = time.perf_counter()
            choose_token(rows[at % NUM_ROWS], params, history, forbidden_ids=(), uniform=rng.random())
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps({"request": name, "median_ms": round(median(times), 3), "least_ms": round(min(times), 3)}))


if __name__ == "__main__":
    main()
