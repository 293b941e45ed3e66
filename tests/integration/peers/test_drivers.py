"""Real processes that speak the drivers' protocol: asked, held still, dead, left out."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fake_peer

import qwenstack
from qwenstack.peers.comparison import Findings, Plan, compare
from qwenstack.peers.driver_process import DriverProcess, Loaded, PeerError, Scored, Timed
from qwenstack.peers.workload import Workload

FAKE = [sys.executable, fake_peer.__file__]


@pytest.fixture
def driver() -> Iterator[DriverProcess]:
    with DriverProcess("fake", FAKE) as driver:
        yield driver


def test_a_driver_answers_what_it_is_asked(driver: DriverProcess):
    loaded = driver.ask({"op": "load", "path": "model.gguf", "num_threads": 2}, Loaded)
    assert loaded == Loaded(engine="fake", version="1.0, 2 threads", weight_bytes_per_step=1000)
    timed = driver.ask({"op": "run", "prompts": [[5, 6], [7, 8]], "max_tokens": 4}, Timed)
    assert (timed.decode_tokens, timed.first_token_ids, timed.cached_tokens) == (6, [5, 7], 0)
    assert driver.ask({"op": "score", "windows": [[1, 2, 3]]}, Scored) == Scored(nll=2.0, num_tokens=2)


def test_what_a_driver_cannot_do_is_a_sentence_and_it_lives_on(driver: DriverProcess):
    with pytest.raises(PeerError, match="fake: it cannot quantise"):
        driver.ask({"op": "quantise", "source": "a", "target": "b", "type": "Q4_0"}, Loaded)
    assert driver.ask({"op": "score", "windows": [[1, 2]]}, Scored).num_tokens == 1


def test_an_answer_of_another_shape_is_no_answer(driver: DriverProcess):
    with pytest.raises(PeerError, match="answered something else"):
        driver.ask({"op": "score", "windows": [[1, 2]]}, Timed)


def test_a_dead_driver_leaves_its_last_words():
    with (
        DriverProcess("fake", [*FAKE, "--dies-in-run", "1"]) as driver,
        pytest.raises(PeerError, match=r"fake died: exit code 3, ASSERT\(the last words\)$"),
    ):
        driver.ask({"op": "run", "prompts": [[1]], "max_tokens": 2}, Timed)


def test_a_program_that_does_not_exist_is_a_sentence():
    with pytest.raises(PeerError, match="fake does not start"):
        DriverProcess("fake", ["/no/such/program"])


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP") or not Path("/proc/self/stat").exists(), reason="Linux")
def test_a_driver_that_is_not_asked_uses_no_processor_even_if_it_spins():
    with DriverProcess("fake", [*FAKE, "--spins"]) as driver:
        driver.ask({"op": "load", "path": "", "num_threads": 1}, Loaded)
        time.sleep(0.05)  # the signal has arrived
        before = _processor_ticks(driver.pid)
        time.sleep(0.3)
        assert _processor_ticks(driver.pid) == before
        assert driver.ask({"op": "score", "windows": [[1, 2]]}, Scored).num_tokens == 1


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_driver_that_is_held_still_does_not_outlive_its_coordinator():
    script = f"""
import time
from qwenstack.peers.driver_process import DriverProcess, Scored
driver = DriverProcess("fake", {FAKE!r})
driver.ask({{"op": "score", "windows": [[1, 2]]}}, Scored)
print(driver.pid, flush=True)
time.sleep(60)
"""
    environ = {**os.environ, "PYTHONPATH": str(Path(qwenstack.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environ, start_new_session=True
    ) as coordinator:
        assert coordinator.stdout is not None
        pid = int(coordinator.stdout.readline())
        coordinator.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists() or _state(pid) == "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def compared(tmp_path: Path, commands: dict[str, list[str]], *, keep_loaded: bool) -> tuple[Findings, list[str]]:
    said: list[str] = []
    plan = Plan(
        model_file=tmp_path / "model.gguf",
        workloads=[Workload.parse("decode-2", 8), Workload.parse("prefill-32", 8)],
        repetitions=3,
        num_threads=1,
        vocab_size=1000,
        keep_loaded=keep_loaded,
    )
    findings = compare(commands, plan, source=random.Random(1), measure_bandwidth=lambda: 1e9, say=said.append)
    return findings, said


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_engines_take_turns_on_the_same_prompts(tmp_path: Path, keep_loaded: bool):
    findings, said = compared(tmp_path, {"a": FAKE, "b": FAKE}, keep_loaded=keep_loaded)
    assert not findings.failures
    assert findings.bandwidths == [1e9] * 3
    assert {key: len(runs) for key, runs in findings.timed.items()} == {
        (engine, workload): 3 for engine in ("a", "b") for workload in ("decode-2", "prefill-32")
    }
    # The fake's first tokens are those of its prompts: both had the same ones, new ones each time.
    prompts = {engine: [run.first_token_ids for run in findings.timed[engine, "decode-2"]] for engine in "ab"}
    assert prompts["a"] == prompts["b"]
    assert len({tuple(ids) for ids in prompts["a"]}) == 3
    order = [line.rpartition(" ")[2] for line in said if "decode-2" in line]
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_an_engine_that_cannot_load_the_file_is_left_out(tmp_path: Path):
    findings, _ = compared(tmp_path, {"a": FAKE, "b": [*FAKE, "--refuses-to-load"]}, keep_loaded=True)
    assert findings.failures == {"b": "b: this file is not to my taste"}
    assert {engine for engine, _ in findings.timed} == {"a"}


def test_an_engine_that_dies_half_way_has_no_figures(tmp_path: Path):
    findings, _ = compared(tmp_path, {"a": FAKE, "b": [*FAKE, "--dies-in-run", "4"]}, keep_loaded=True)
    assert "the last words" in findings.failures["b"]
    assert {engine for engine, _ in findings.timed} == {"a"}
    assert all(len(runs) == 3 for runs in findings.timed.values())
