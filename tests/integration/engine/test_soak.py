"""An engine under load for a long time: nothing is lost, nothing grows.

The usual run takes some seconds. `QWENSTACK_SOAK_SECONDS=3600` is the real one: at least 200,000 requests and two
million steps, and memory may grow by at most 32 MB an hour after the first five minutes.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack.core.errors import CapacityError, RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.building import build_engine
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.engine import Engine

SECONDS = float(os.environ.get("QWENSTACK_SOAK_SECONDS", "10"))
WARM_UP_S = 300.0
IS_LONG = SECONDS >= 4 * WARM_UP_S
LEAST_REQUESTS = 200_000
LEAST_STEPS = 2_000_000
MOST_BYTES_AN_HOUR = 32 << 20
SAMPLE_EVERY_S = 5.0
ABORTS, BAD_REQUESTS = 0.10, 0.05
CONCURRENT = 3

pytestmark = pytest.mark.timeout(SECONDS * 2 + 600)

BASES = [[int(token) for token in np.random.default_rng(seed).integers(0, 256, 64)] for seed in range(8)]
BAD = (
    ([], SamplingParams(max_tokens=4)),
    ([10**9], SamplingParams(max_tokens=4)),
    ([1] * 5000, SamplingParams(max_tokens=4)),
    ([1], SamplingParams(max_tokens=4, logit_bias={10**6: 1.0})),
    ([1], SamplingParams(max_tokens=4, stop_token_ids=[-5])),
    ([1, 2], SamplingParams(max_tokens=4, grammar=Grammar(kind="regex", source="(((("))),
)
"""Refused at the door, but the last, whose grammar cannot be compiled: an end with an error."""


class Load:
    """Keeps an engine busy and counts what came back."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.open: dict[str, int | None] = {}
        """Requests without an end, and after how many of their deltas they are given up."""
        self.num_requests = self.num_aborted = self.num_refused = self.num_failed = self.num_ended = 0

    def arrive(self) -> None:
        name = str(self.num_requests)
        self.num_requests += 1
        if self.random.random() < BAD_REQUESTS:
            prompt, params = self.random.choice(BAD)
            try:
                self.engine.add_request(name, prompt, params)
            except RequestError:
                self.num_refused += 1
            else:
                self.open[name] = None
            return
        prompt = [*self.random.choice(BASES)[: self.random.randint(1, 64)], self.random.randrange(256)]
        params = SamplingParams(
            temperature=self.random.choice([0.0, 0.9]),
            seed=self.num_requests,
            max_tokens=self.random.randint(4, 36),
            ignore_eos=self.random.random() < 0.9,
        )
        options = RequestOptions(tenant=self.random.choice("abc"), priority=self.random.randint(-1, 1))
        try:
            self.engine.add_request(name, prompt, params, options)
        except CapacityError:
            self.num_refused += 1
        else:
            self.open[name] = self.random.randint(0, 20) if self.random.random() < ABORTS else None

    def step(self) -> None:
        for delta in self.engine.step():
            assert delta.request_id in self.open, "nothing comes after an end"
            if delta.finish_reason is not None:
                del self.open[delta.request_id]
                self.num_failed += delta.finish_reason == "error"
                self.num_ended += 1
                continue
            left = self.open[delta.request_id]
            if left == 0:
                assert self.engine.abort(delta.request_id)
                del self.open[delta.request_id]
                self.num_aborted += 1
            elif left is not None:
                self.open[delta.request_id] = left - 1


def slope_bytes_an_hour(samples: list[tuple[float, int]]) -> float:
    """Return the least-squares slope of (seconds, bytes) after the warm-up."""
    late = np.array([sample for sample in samples if sample[0] >= WARM_UP_S], np.float64)
    return float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 3600


def test_nothing_is_lost_and_nothing_grows_under_a_long_load(tmp_path: Path) -> None:
    config = EngineConfig(
        model_path=write_tiny_gguf(tmp_path / "tiny.gguf", dataclasses.replace(QWEN3_Q8, num_layers=1)),
        model_name="tiny",
        num_threads=1,
        max_model_len=512,
        max_num_seqs=CONCURRENT,
        max_num_waiting=64,
        kv_cache_memory_bytes=1 << 20,
        prefix_cache_dir=tmp_path / "prefix",
        prefix_cache_disk_bytes=16 << 20,
    )
    engine = build_engine(config)
    process, load = psutil.Process(), Load(engine, seed=int(os.environ.get("QWENSTACK_SOAK_SEED", "1")))
    samples: list[tuple[float, int]] = []
    began = time.monotonic()
    next_sample = 0.0
    while (elapsed := time.monotonic() - began) < SECONDS:
        while len(load.open) < CONCURRENT + 1:
            load.arrive()
        for _ in range(20):
            load.step()
        if elapsed >= next_sample:
            samples.append((elapsed, process.memory_info().rss))
            next_sample = elapsed + SAMPLE_EVERY_S
    while engine.has_work:
        load.step()
    engine.check_integrity()
    stats = engine.stats()
    files_and_threads = (process.num_fds(), threading.active_count())
    engine.close()
    gc.collect()
    report = {
        "seconds": round(time.monotonic() - began, 1),
        "requests": load.num_requests,
        "steps": stats.num_steps,
        "ended": load.num_ended,
        "aborted": load.num_aborted,
        "refused": load.num_refused,
        "failed": load.num_failed,
        "preemptions": stats.num_preemptions,
        "prefix_cache_hits": stats.prefix_cache_hits,
        "accepted_drafts": stats.num_accepted_tokens,
        "fds_and_threads": files_and_threads,
        "rss_mb": [samples[0][1] >> 20, samples[-1][1] >> 20],
        "slope_mb_an_hour": round(slope_bytes_an_hour(samples) / (1 << 20), 2) if IS_LONG else None,
    }
    sys.stdout.write(json.dumps(report) + "\n")
    assert not load.open
    assert load.num_requests == load.num_ended + load.num_aborted + load.num_refused
    assert min(load.num_aborted, load.num_refused, load.num_failed, stats.prefix_cache_hits) > 0
    assert stats.num_blocks_free == stats.num_blocks_total
    assert stats.num_requests_running == stats.num_requests_waiting == 0
    assert process.num_fds() <= files_and_threads[0]
    if IS_LONG:
        assert slope_bytes_an_hour(samples) <= MOST_BYTES_AN_HOUR
    if SECONDS >= 3600:
        assert load.num_requests >= LEAST_REQUESTS
        assert stats.num_steps >= LEAST_STEPS
