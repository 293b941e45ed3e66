"""Workloads: what their names mean, what they read, who begins."""

from __future__ import annotations

import random

import pytest

from qwenstack.core.errors import ConfigError
from qwenstack.peers.workload import DEFAULT_WORKLOADS, Workload, turns


@pytest.mark.parametrize(
    ("name", "timed", "num_streams", "prompt_tokens", "max_tokens"),
    [
        ("prefill-512", "prefill", 1, 512, 1),
        ("decode-1", "decode", 1, 16, 128),
        ("decode-16", "decode", 16, 16, 128),
        ("context-4096", "decode", 1, 4096, 128),
    ],
)
def test_a_name_says_what_is_timed(name: str, timed: str, num_streams: int, prompt_tokens: int, max_tokens: int):
    workload = Workload.parse(name, 128)
    assert (workload.timed, workload.num_streams) == (timed, num_streams)
    assert (workload.prompt_tokens, workload.max_tokens) == (prompt_tokens, max_tokens)


@pytest.mark.parametrize("name", ["decode", "decode-0", "prefill-x", "train-1", ""])
def test_another_name_is_refused_with_the_forms_there_are(name: str):
    with pytest.raises(ConfigError, match=r"prefill-TOKENS, decode-STREAMS or context-TOKENS"):
        Workload.parse(name, 128)


def test_the_default_workloads_exist():
    assert [Workload.parse(name, 128).name for name in DEFAULT_WORKLOADS] == list(DEFAULT_WORKLOADS)


def test_prompts_are_never_the_same_twice():
    source = random.Random(0)
    workload = Workload.parse("decode-8", 128)
    prompts = [tuple(prompt) for _ in range(50) for prompt in workload.fresh_prompts(source, 1000)]
    assert len(set(prompts)) == 400
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)


def test_a_warm_up_keeps_the_streams_and_is_short():
    assert Workload.parse("decode-16", 128).shortened().num_streams == 16
    assert Workload.parse("context-8192", 128).shortened().prompt_tokens == 512
    assert Workload.parse("prefill-512", 128).shortened() == Workload.parse("prefill-512", 128)


def test_a_step_reads_the_weights_once_and_the_context_of_every_stream():
    assert Workload.parse("decode-1", 129).bytes_per_step(1000, 10) == 1000 + (16 + 64) * 10
    assert Workload.parse("decode-8", 129).bytes_per_step(1000, 10) == 1000 + 8 * (16 + 64) * 10


def test_everybody_begins_once_before_anybody_begins_twice():
    assert [turns(["a", "b", "c"], repetition) for repetition in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
