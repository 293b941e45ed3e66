"""Deltas add up to the whole answer."""

from __future__ import annotations

import pytest

from qwenstack.core.errors import CapacityError, EngineError, QwenStackError, RequestError
from qwenstack.core.outputs import (
    CompletionOutput,
    GeneratedToolCall,
    OutputDelta,
    RequestOutput,
    TokenLogprob,
    ToolCallDelta,
    failed_delta,
    raise_if_failed,
)


def test_an_answer_is_the_sum_of_its_deltas() -> None:
    output = RequestOutput(
        request_id="r",
        prompt=None,
        prompt_token_ids=[1],
        outputs=[CompletionOutput(index=0), CompletionOutput(index=1)],
    )
    first, second = TokenLogprob(token_id=7, logprob=-0.5), TokenLogprob(token_id=8, logprob=-1.0)
    for delta in (
        OutputDelta(request_id="r", reasoning_text="hm", token_ids=[7], logprobs=[first], num_cached_tokens=3),
        OutputDelta(request_id="r", index=1, text="other", prompt_logprobs=[None]),
        OutputDelta(request_id="r", reasoning_text="m", num_generated_tokens=2, num_reasoning_tokens=1),
        OutputDelta(request_id="r", text="a", tool_calls=[ToolCallDelta(index=0, name="f", arguments="{")]),
        OutputDelta(
            request_id="r", tool_calls=[ToolCallDelta(index=0, arguments="}"), ToolCallDelta(index=1, name="g")]
        ),
        OutputDelta(
            request_id="r",
            text="b",
            token_ids=[8],
            logprobs=[second],
            num_generated_tokens=3,
            finish_reason="stop",
            stop_reason="c",
        ),
    ):
        output.add(delta)
    answer, other = output.outputs
    assert (answer.text, answer.reasoning_text, answer.token_ids) == ("ab", "hmm", [7, 8])
    assert answer.tool_calls == [GeneratedToolCall(name="f", arguments="{}"), GeneratedToolCall(name="g")]
    assert answer.logprobs == [first, second]
    assert (answer.num_generated_tokens, answer.num_reasoning_tokens) == (5, 1)
    assert (answer.finish_reason, answer.stop_reason) == ("stop", "c")
    assert (other.text, other.logprobs, other.finish_reason) == ("other", None, None)
    assert (output.num_cached_tokens, output.prompt_logprobs) == (3, [None])


@pytest.mark.parametrize(
    "error",
    [RequestError("wrong", param="n", code="invalid_value"), CapacityError("full; try again"), EngineError("broken")],
)
def test_a_failure_is_raised_as_what_it_was(error: QwenStackError) -> None:
    with pytest.raises(type(error)) as raised:
        raise_if_failed(failed_delta("r", 0, error))
    assert str(error) in str(raised.value)
