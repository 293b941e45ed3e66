"""Drafts copied from the text: what they are, how often they are right, when they stop.

The recording holds what Qwen2.5-Coder-0.5B answers to `benches/data/speculation_prompts.json` at temperature 0, written
by `benches/speculation.py --record`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engine.speculation import DraftRequest, NgramSpeculator, StepCost
from qwenstack.engine.speculation.replay import ReplayedStep, replay

RECORDING = Path(__file__).parents[2] / "data" / "speculation_recording.jsonl"
PER_ROW = [0.07, 0.15, 0.3]
"""Processors with AVX-512 VNNI, in between, with AVX2."""
LIMIT = 16


class Answer(NamedTuple):
    id: str
    kind: str
    prompt_token_ids: list[int]
    output_token_ids: list[int]

    def steps(self, speculator: NgramSpeculator) -> Iterator[ReplayedStep]:
        return replay(speculator, self.prompt_token_ids, self.output_token_ids, limit=LIMIT)


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    return [Answer(**json.loads(line)) for line in RECORDING.read_text().splitlines()]


@pytest.mark.parametrize("per_row", PER_ROW)
def test_an_edit_gets_over_two_tokens_a_step_by_the_median(answers: list[Answer], per_row: float) -> None:
    speculator = NgramSpeculator(StepCost(per_row=per_row))
    edits = [list(answer.steps(speculator)) for answer in answers if answer.kind == "edits"]
    assert len(edits) >= 20
    assert median(sum(step.num_tokens for step in steps) / len(steps) for steps in edits) >= 2.2


@pytest.mark.parametrize("per_row", PER_ROW)
def test_free_text_loses_less_than_two_percent_and_drafts_are_off_within_32_tokens_where_they_do_not_pay(
    answers: list[Answer], per_row: float
) -> None:
    cost = StepCost(per_row=per_row)
    free_texts = [answer for answer in answers if answer.kind == "free_text"]
    assert len(free_texts) >= 20
    for answer in free_texts:
        speculator = NgramSpeculator(cost)
        num_tokens, time, was_off, gain_at_32 = 0, 0.0, False, None
        for step in answer.steps(speculator):
            num_tokens += step.num_tokens
            time += cost.of(1 + step.num_drafts)
            was_off |= not speculator.is_on(0)
            if num_tokens <= 32:
                gain_at_32 = num_tokens / time
        assert num_tokens / time >= 0.98, answer.id
        assert gain_at_32 is not None
        assert was_off or num_tokens < 32 or gain_at_32 > 1.0, answer.id


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.lists(st.integers(0, 2), max_size=80), st.data())
def test_any_text_in_any_pieces_is_drafted_within_the_limit(
    prompt: list[int], answer: list[int], data: st.DataObject
) -> None:
    speculator = NgramSpeculator(StepCost())
    known: list[int] = []
    while len(known) < len(answer):
        limit = data.draw(st.integers(0, 8))
        request = DraftRequest(key=1, prompt_token_ids=prompt, output_token_ids=known, limit=limit)
        (drafts,) = speculator.propose([request])
        assert len(drafts) <= limit
        assert set(drafts) <= {*prompt, *known}
        known.extend(answer[len(known) : len(known) + data.draw(st.integers(0, 9))])


def test_what_the_answer_repeats_of_itself_is_drafted() -> None:
    speculator = NgramSpeculator(StepCost(per_row=0.1))
    answer = [*range(100, 140)] * 2
    steps = list(replay(speculator, [1, 2, 3], answer, limit=8))
    assert sum(step.num_drafts for step in steps[:39]) == 0
    assert len(steps) < 39 + 25


def test_drafts_are_off_in_what_is_new_and_back_in_what_repeats() -> None:
    speculator = NgramSpeculator(StepCost())
    fresh, copied = [*range(1000, 1200)], [*range(500, 700)]
    was_on: list[bool] = []
    for step in replay(speculator, copied, [*fresh, *copied], limit=8):
        was_on.extend([speculator.is_on(0)] * step.num_tokens)
    assert not any(was_on[32:200])
    assert all(was_on[230:-1])


def test_sequences_do_not_learn_from_each_other() -> None:
    together, alone = NgramSpeculator(StepCost()), NgramSpeculator(StepCost())
    one, other = [1, 2, 3, 4, 5, 6, 1, 2, 3], [7, 8, 9, 7, 8, 9, 7, 8]

    def request(key: int, prompt: Sequence[int]) -> DraftRequest:
        return DraftRequest(key=key, prompt_token_ids=prompt, output_token_ids=[], limit=4)

    both = together.propose([request(1, one), request(2, other)])
    assert both[0][:1] == alone.propose([request(1, one)])[0][:1] == [4]
    assert both[1][:1] == [9]


def test_a_forgotten_sequence_leaves_nothing() -> None:
    speculator = NgramSpeculator(StepCost())
    text = [1, 2, 3, 1, 2]
    speculator.propose([DraftRequest(key=1, prompt_token_ids=text, output_token_ids=[], limit=4)])
    speculator.forget(1)
    speculator.forget(1)
    (drafts,) = speculator.propose([DraftRequest(key=1, prompt_token_ids=[5, 6, 7], output_token_ids=[], limit=4)])
    assert drafts == []
