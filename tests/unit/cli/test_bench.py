"""Measuring: the right tokens in the right phase, by a clock that the test holds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qwenstack.cli.bench import Run, measure, summarise
from qwenstack.core.errors import EngineError
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.sampling_params import SamplingParams


class ClockedEngine:
    """Reads one prompt a step, in a second, then writes a token for every open answer, in a tenth of one."""

    def __init__(self) -> None:
        self.now = 100.0
        self.params: list[SamplingParams] = []
        self._unread: list[str] = []
        self._left: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._unread or self._left)

    def add_request(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        self._unread.append(request_id)
        self.params.append(params)

    def step(self) -> list[OutputDelta]:
        if self._unread:
            self.now += 1.0
            request_id = self._unread.pop(0)
            self._left[request_id] = self.params[0].max_tokens - 1
            return [OutputDelta(request_id=request_id, token_ids=[0])]
        self.now += 0.1
        deltas = [OutputDelta(request_id=request_id, token_ids=[0]) for request_id in self._left]
        self._left = {request_id: left - 1 for request_id, left in self._left.items() if left > 1}
        return deltas


@pytest.mark.parametrize("batch", [1, 3])
def test_prefill_ends_with_the_last_first_token_and_decode_counts_the_rest(batch: int):
    engine = ClockedEngine()
    run = measure(engine, [[1] * 50] * batch, max_tokens=11, clock=lambda: engine.now)
    assert run.prefill_tokens_per_second == pytest.approx(50.0)
    assert run.decode_tokens == 10 * batch
    assert run.decode_tokens_per_second == pytest.approx(10.0 * batch)


def test_answers_are_greedy_and_run_past_the_end_token():
    engine = ClockedEngine()
    measure(engine, [[1]], max_tokens=4)
    assert engine.params == [SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)]


def test_a_failed_step_is_no_measurement():
    class Failing(ClockedEngine):
        def step(self) -> list[OutputDelta]:
            return [OutputDelta(request_id="bench-0", finish_reason="error", error="broken")]

    with pytest.raises(EngineError, match="broken"):
        measure(Failing(), [[1]], max_tokens=4)


def test_the_report_has_medians_and_every_figure():
    runs = [Run(prefill_tokens=100, prefill_s=s, decode_tokens=10, decode_s=s) for s in (1.0, 2.0, 10.0)]
    assert summarise(runs) == {
        "prefill_tokens_per_second": 50.0,
        "decode_tokens_per_second": 5.0,
        "ttft_ms": 2000.0,
        "prefill_tokens_per_second_runs": [100.0, 50.0, 10.0],
        "decode_tokens_per_second_runs": [10.0, 5.0, 1.0],
    }
