"""From options to sampling, and the single answer."""

from __future__ import annotations

import pytest

from qwenstack.cli.chat.command import ChatOptions, answer_once, sampling_params
from qwenstack.core.errors import ConfigError
from qwenstack.core.sampling_params import SamplingParams


def test_the_models_advice_holds_until_the_user_wishes_otherwise():
    params = sampling_params({"temperature": 0.6, "top_p": 0.95}, ChatOptions(temperature=0.0, seed=7).sampling)
    assert params == SamplingParams(temperature=0.0, top_p=0.95, seed=7, max_tokens=None)


def test_a_model_without_advice_gets_the_common_one():
    assert sampling_params({}, {}) == SamplingParams(temperature=0.7, top_p=0.8, top_k=20, max_tokens=None)


@pytest.mark.parametrize("options", [ChatOptions(temperature=-1), ChatOptions(max_tokens=0), ChatOptions(top_k=-1)])
def test_a_wish_outside_its_range_is_refused(options: ChatOptions):
    with pytest.raises(ConfigError, match="it must be"):
        sampling_params({}, options.sampling)


def test_a_single_answer_is_printed_with_one_line_end(fake_model, capsys: pytest.CaptureFixture[str]):
    model = fake_model(["巴", "黎"])
    answer_once(model, "法国的首都？", SamplingParams(), system="短", enable_thinking=False)
    assert capsys.readouterr() == ("巴黎\n", "")
    assert [message.content for message in model.asked[0]] == ["短", "法国的首都？"]
    assert model.thinking == [False]


def test_a_single_answer_that_was_cut_off_says_so_beside_the_result(fake_model, capsys: pytest.CaptureFixture[str]):
    model = fake_model(["a"])
    model.finish_reason = "length"
    answer_once(model, "?", SamplingParams(), system=None, enable_thinking=None)
    out, err = capsys.readouterr()
    assert out == "a\n"
    assert "cut off after 1 tokens" in err


def test_in_a_pipe_the_answer_is_left_as_it_is(fake_model, capsys: pytest.CaptureFixture[str]):
    answer_once(fake_model(["\x1b[1m\r"]), "?", SamplingParams(), system=None, enable_thinking=None)
    assert capsys.readouterr().out == "\x1b[1m\r\n"
