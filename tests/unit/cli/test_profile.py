"""Where the time went: every second of a step belongs to one phase of one section."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.toy import toy_model

from qwenstack.cli.bandwidth import measure_read_bandwidth
from qwenstack.cli.bench import measure
from qwenstack.cli.profile import Profiler, print_profile
from qwenstack.core.weight_type import WeightType
from qwenstack.engine.engine import Engine
from qwenstack.kernels import ReferenceKernels


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_phases_get_the_time_until_the_next_one_and_sections_their_own_steps() -> None:
    clock = Clock()
    profiler = Profiler(clock)
    for section, seconds in (("prefill", 4.0), ("decode", 1.0), ("decode", 2.0), (None, 100.0)):
        profiler.begin(section)
        profiler.enter("plan")
        clock.now += 0.5
        profiler.enter("forward")
        clock.now += seconds
        profiler.leave()
        clock.now += 50.0  # between two steps
    report = profiler.report()
    assert report["prefill"]["phase_seconds"] == {"plan": 0.5, "forward": 4.0}
    assert report["decode"]["phase_seconds"] == {"plan": 1.0, "forward": 3.0}
    assert (report["prefill"]["num_steps"], report["decode"]["num_steps"]) == (1, 2)
    assert report["decode"]["seconds"] == 4.0


def test_kernels_are_counted_in_the_section_that_they_ran_in() -> None:
    clock = Clock()

    class Slow(ReferenceKernels):
        def linear(self, *args: Any, **options: Any) -> None:
            super().linear(*args, **options)
            clock.now += 0.25

    profiler = Profiler(clock)
    kernels = profiler.instrument(Slow(8))
    values = np.ones((8, 32), np.float32)
    weight = SimpleNamespace(
        name="lm_head.weight", weight_type=WeightType.F32, shape=(8, 32), data=values.view(np.uint8)
    )
    packed = kernels.pack([weight])

    def run(num_calls: int) -> None:
        profiler.enter("logits")
        clock.now += 0.5
        profiler.enter("choose")
        clock.now += 8.0
        profiler.enter("logits")
        for _ in range(num_calls):
            kernels.linear(np.ones((1, 32), np.float32), packed, np.empty((1, 8), np.float32))
        clock.now += 0.5
        profiler.leave()

    run(7)  # before any section
    profiler.begin("prefill")
    run(1)
    profiler.begin("decode")
    run(2)
    profiler.begin("prefill")
    run(3)
    profiler.begin(None)
    report = profiler.report()
    (line,) = report["prefill"]["kernels"]
    assert line["operation"] == "linear head"
    assert (line["num_calls"], line["seconds"], line["bytes_read"]) == (4, 1.0, 4 * packed.num_bytes)
    assert (report["prefill"]["model_seconds"], report["prefill"]["between_kernels_seconds"]) == (3.0, 2.0)
    assert report["decode"]["kernels"][0]["num_calls"] == 2


def test_a_measured_engine_reports_its_steps_apart_and_the_report_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    profiler = Profiler()
    engine = Engine(toy_model(max_num_batched_tokens=16), clock=profiler)
    run = measure(engine, [[1] * 40], max_tokens=11, on_section=profiler.begin)
    report = json.loads(json.dumps(profiler.report()))
    assert report["prefill"]["num_steps"] == 3, "40 tokens in pieces of 16"
    assert report["decode"]["num_steps"] == run.decode_tokens == 10
    assert report["decode"]["seconds"] <= run.decode_s
    assert set(report["decode"]["phase_seconds"]) == {"plan", "apply", "build_batch", "forward", "logits", "choose"}
    print_profile({"profile": profiler.report(), "memory_bandwidth_gb_per_second": 12.5})
    assert "12.5 GB/s" in capsys.readouterr().out


def test_the_shares_of_each_table_add_up_to_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    def kernel(operation: str, seconds: float) -> dict[str, object]:
        return {"operation": operation, "num_calls": 8, "seconds": seconds, "bytes_read": 0, "gb_per_second": 0.0}

    decode = {
        "num_steps": 2,
        "seconds": 8.0,
        "phase_seconds": {"plan": 2.0, "forward": 3.0, "logits": 1.0, "choose": 2.0},
        "model_seconds": 4.0,
        "kernels": [kernel("attention", 2.0), kernel("linear head", 1.0)],
        "between_kernels_seconds": 1.0,
    }
    print_profile({"profile": {"decode": decode}, "memory_bandwidth_gb_per_second": 12.5})
    tables = re.split(r"^(?=DECODE|memory)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    phases, kernels, _ = ([re.split(r"\s{2,}", line.strip()) for line in table.splitlines()] for table in tables)
    assert phases == [
        ["DECODE: PHASES OF A STEP", "MS/STEP", "SHARE"],
        ["plan", "1000.000", "25.0%"],
        ["forward", "1500.000", "37.5%"],
        ["logits", "500.000", "12.5%"],
        ["choose", "1000.000", "25.0%"],
        ["all", "4000.000", "100.0%"],
    ]
    assert kernels[:5] == [
        ["DECODE: KERNELS OF FORWARD AND LOGITS", "CALLS", "MS/STEP", "SHARE", "MB/STEP", "GB/S"],
        ["attention", "8", "1000.000", "50.0%"],
        ["linear head", "8", "500.000", "25.0%"],
        ["between kernels", "500.000", "25.0%"],
        ["all", "2000.000", "100.0%"],
    ]


def test_the_memory_is_read_at_a_speed_that_memory_has() -> None:
    assert 1e8 < measure_read_bandwidth(1) < 1e13
