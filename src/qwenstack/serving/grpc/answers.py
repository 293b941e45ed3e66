"""From what the engine gives to messages of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qwenstack.core.outputs import CompletionOutput, OutputDelta, TokenLogprob
from qwenstack.serving.grpc.v1 import generation_pb2 as pb
from qwenstack.serving.grpc.v1.messages_pb2 import ROLE_ASSISTANT, FunctionCall, Message, ToolCall
from qwenstack.serving.service import UsageTally
from qwenstack.serving.wire.chat import ChatFinishReason, chat_finish_reason
from qwenstack.serving.wire.tools import new_call_id

TokenBytes = Callable[[int], bytes]

_FINISH_REASONS: Mapping[ChatFinishReason, pb.FinishReason] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
}


def write_choice(answer: CompletionOutput, token_bytes: TokenBytes) -> pb.Choice:
    """Write a whole answer."""
    calls = [
        ToolCall(id=new_call_id(), function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in answer.tool_calls
    ]
    message = Message(role=ROLE_ASSISTANT, tool_calls=calls)
    if answer.text or not calls:
        message.content = answer.text
    if answer.reasoning_text:
        message.reasoning_content = answer.reasoning_text
    return pb.Choice(
        index=answer.index,
        message=message,
        finish_reason=_FINISH_REASONS[chat_finish_reason(answer.finish_reason, has_calls=bool(calls))],
        stop_reason=_stop_reason(answer.stop_reason),
        logprobs=_logprobs(answer.logprobs, token_bytes),
    )


def write_delta(delta: OutputDelta, token_bytes: TokenBytes, *, has_calls: bool) -> pb.ChoiceDelta | None:
    """Write what a step added; None where a client would read nothing in it.

    Args:
        delta: what it added.
        token_bytes: what tokens stand for.
        has_calls: whether the answer has tool calls, these or earlier ones.
    """
    written = pb.ChoiceDelta(
        index=delta.index,
        content=delta.text,
        reasoning_content=delta.reasoning_text,
        tool_calls=[
            pb.ToolCallDelta(
                index=call.index,
                id=new_call_id() if call.name is not None else "",
                name=call.name or "",
                arguments=call.arguments,
            )
            for call in delta.tool_calls
        ],
        logprobs=_logprobs(delta.logprobs, token_bytes),
    )
    if delta.finish_reason is not None:
        written.finish_reason = _FINISH_REASONS[chat_finish_reason(delta.finish_reason, has_calls=has_calls)]
        stop_reason = _stop_reason(delta.stop_reason)
        if stop_reason is not None:
            written.stop_reason.CopyFrom(stop_reason)
    is_empty = not (written.content or written.reasoning_content or written.tool_calls or written.logprobs)
    return None if is_empty and delta.finish_reason is None else written


def write_usage(tally: UsageTally) -> pb.Usage:
    """Write the counted tokens."""
    return pb.Usage(
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        cached_tokens=tally.cached_tokens,
        reasoning_tokens=tally.reasoning_tokens,
    )


def _stop_reason(reason: int | str | None) -> pb.StopReason | None:
    match reason:
        case None:
            return None
        case str():
            return pb.StopReason(text=reason)
        case int():
            return pb.StopReason(token_id=reason)


def _logprobs(logprobs: Sequence[TokenLogprob] | None, token_bytes: TokenBytes) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token_id=entry.token_id,
            token=token_bytes(entry.token_id),
            logprob=entry.logprob,
            top=[
                pb.TopLogprob(token_id=token_id, token=token_bytes(token_id), logprob=logprob)
                for token_id, logprob in entry.top
            ],
        )
        for entry in logprobs or ()
    ]
