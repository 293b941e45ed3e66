"""A streamed answer: shown at once, stoppable, honest about its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

from qwenstack.cli.chat.answer import Answer, StopOnInterrupt, stream_answer
from qwenstack.core.errors import EngineError
from qwenstack.core.messages import Message
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.sampling_params import SamplingParams

QUESTION = [Message(role="user", content="?")]
PARAMS = SamplingParams()


def test_pieces_are_shown_one_by_one_and_make_up_the_answer(fake_model):
    shown: list[str] = []
    answer = stream_answer(fake_model(["你", "好", "!"]), QUESTION, PARAMS, enable_thinking=None, show=shown.append)
    assert shown == ["你", "好", "!"]
    assert (answer.text, answer.num_tokens, answer.finish_reason) == ("你好!", 3, "stop")
    assert 0 <= answer.ttft_s <= answer.total_s


def test_a_wish_to_stop_cancels_the_generation_and_keeps_what_there_is(fake_model):
    model, shown = fake_model(["a", "b", "c", "d"]), []
    answer = stream_answer(
        model, QUESTION, PARAMS, enable_thinking=None, show=shown.append, is_stopped=lambda: len(shown) == 2
    )
    assert (answer.text, answer.finish_reason) == ("ab", None)
    assert model.num_cancelled == 1


def test_a_failure_in_the_middle_is_an_error():
    class Failing:
        def stream_chat(self, *_: object, **__: object) -> Generator[OutputDelta]:
            yield OutputDelta(request_id="r", text="half", token_ids=[1])
            yield OutputDelta(request_id="r", finish_reason="error", error="out of memory")

    with pytest.raises(EngineError, match="out of memory"):
        stream_answer(Failing(), QUESTION, PARAMS, enable_thinking=None, show=lambda _: None)


def test_speed_counts_the_tokens_after_the_first():
    answer = Answer(text="", num_tokens=11, finish_reason="stop", ttft_s=1.0, total_s=3.0)
    assert answer.tokens_per_second == 5.0
    assert Answer(text="", num_tokens=1, finish_reason="stop", ttft_s=1.0, total_s=3.0).tokens_per_second is None


def test_the_first_interrupt_is_a_wish_and_the_second_one_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with StopOnInterrupt() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
