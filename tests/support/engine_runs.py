"""Runs an engine to its end and collects what every answer got."""

from __future__ import annotations

from collections.abc import Iterable

from qwenstack.core.outputs import CompletionOutput, OutputDelta
from qwenstack.engine.engine import Engine

Answers = dict[tuple[str, int], CompletionOutput]


def collect(deltas: Iterable[OutputDelta], answers: Answers) -> None:
    """Add deltas to the answers they belong to; nothing may come after an end."""
    for delta in deltas:
        answer = answers.setdefault((delta.request_id, delta.index), CompletionOutput(index=delta.index))
        assert answer.finish_reason is None, "nothing comes after the end"
        assert delta.error is None, delta.error
        answer.text += delta.text
        answer.reasoning_text += delta.reasoning_text
        answer.token_ids.extend(delta.token_ids)
        answer.finish_reason = delta.finish_reason
        answer.stop_reason = delta.stop_reason
        if delta.logprobs is not None:
            answer.logprobs = [*(answer.logprobs or []), *delta.logprobs]


def run_to_end(engine: Engine, *, most_steps: int = 20_000) -> Answers:
    """Step until nothing is left, checking the books after every step."""
    answers: Answers = {}
    for _ in range(most_steps):
        if not engine.has_work:
            return answers
        collect(engine.step(), answers)
        engine.check_integrity()
    raise AssertionError(f"not finished after {most_steps} steps: somebody starves")
