"""Frames between the processes: any cut of the stream gives the same messages, and nothing is believed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.errors import EngineError
from qwenstack.core.framing import MAX_FRAME_BYTES, FrameBuffer
from qwenstack.core.grammar import Grammar
from qwenstack.core.outputs import OutputDelta, TokenLogprob
from qwenstack.core.protocols import AdapterInfo, EngineStats
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.wire import (
    Abort,
    Adapters,
    Command,
    Deltas,
    ListAdapters,
    LoadAdapter,
    Start,
    Submit,
    UnloadAdapter,
    command_decoder,
    encode_frame,
    event_decoder,
)

COMMANDS: list[Command] = [
    Start(EngineConfig(model_path=Path("/a/模型.gguf"), model_name="模型", activation_bits=16)),
    Submit("one", [1, 2, 151_664], SamplingParams(stop=["\n", "停"], logit_bias={5: -100.0}, seed=-3, logprobs=2)),
    Abort("one"),
    LoadAdapter("法律", Path("/a/适配器")),
    UnloadAdapter("法律"),
    ListAdapters(),
]


@given(st.lists(st.integers(1, 40), min_size=1))
def test_however_the_bytes_arrive_the_commands_are_the_same(sizes: list[int]) -> None:
    stream = b"".join(encode_frame(command) for command in COMMANDS)
    buffer = FrameBuffer()
    received: list[Command] = []
    at = 0
    while at < len(stream):
        size = sizes[at % len(sizes)]
        received.extend(command_decoder.decode(body) for body in buffer.feed(stream[at : at + size]))
        at += size
    assert received[0] == COMMANDS[0]
    assert received[2:] == COMMANDS[2:]
    submitted = received[1]
    assert isinstance(submitted, Submit)
    assert list(submitted.params.stop) == ["\n", "停"]
    assert submitted.params.logit_bias == {5: -100.0}
    assert submitted.params.seed == -3


def test_a_request_keeps_its_grammar_and_its_treatment() -> None:
    grammar = Grammar(kind="tools", source='[{"type": "function"}]', required_tool="*")
    params = SamplingParams(grammar=grammar, thinking_budget=0)
    options = RequestOptions(tenant="甲", priority=-7, prefix_cache=False, speculation=False, adapter="法律")
    (body,) = FrameBuffer().feed(encode_frame(Submit("r", [1], params, options)))
    back = command_decoder.decode(body)
    assert isinstance(back, Submit)
    assert (back.params.grammar, back.params.thinking_budget, back.options) == (grammar, 0, options)


def test_a_request_without_treatment_gets_the_default() -> None:
    (body,) = FrameBuffer().feed(encode_frame(Submit("r", [1], SamplingParams())))
    back = command_decoder.decode(body)
    assert isinstance(back, Submit)
    assert (back.options, back.params.grammar) == (RequestOptions(), None)


def test_adapters_keep_everything() -> None:
    adapters = [AdapterInfo(name="法律", rank=8, num_bytes=540_672, num_sequences=2, digest="ab" * 32)]
    (body,) = FrameBuffer().feed(encode_frame(Adapters(adapters)))
    assert event_decoder.decode(body) == Adapters(adapters)


STATS = EngineStats(
    num_requests_running=1,
    num_requests_waiting=2,
    num_blocks_total=8,
    num_blocks_free=2,
    num_preemptions=0,
    prompt_tokens=40,
    generation_tokens=3,
    prefix_cache_queries=0,
    prefix_cache_hits=0,
    num_steps=5,
)


def test_deltas_keep_everything() -> None:
    delta = OutputDelta(
        request_id="r",
        index=1,
        text="好",
        token_ids=[7],
        logprobs=[TokenLogprob(token_id=7, logprob=-0.5, top=((7, -0.5), (8, -1.0)))],
        finish_reason="stop",
        stop_reason="停",
    )
    (body,) = FrameBuffer().feed(encode_frame(Deltas(deltas=[delta], stats=STATS)))
    event = event_decoder.decode(body)
    assert isinstance(event, Deltas)
    (back,) = event.deltas
    assert event.stats == STATS
    assert event.stats.kv_cache_usage == 0.75
    assert (back.text, list(back.token_ids), back.finish_reason, back.stop_reason) == ("好", [7], "stop", "停")
    assert back.logprobs is not None
    assert back.logprobs[0].logprob == -0.5


def test_a_frame_that_claims_too_much_is_refused_before_it_is_awaited() -> None:
    with pytest.raises(EngineError, match="limit"):
        FrameBuffer().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))
