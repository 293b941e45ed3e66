"""Drafts copied from the text itself: code that is edited, quoted documents, loops.

Each sequence keeps an index of its prompt and of its own answer. A draft is what followed the longest earlier match of
the last tokens, as long as the chances say that it pays. While it does not pay, drafts are still made and compared
with the answer, but not given to the engine: that costs microseconds and tells exactly when to begin again.
Source: prompt lookup, Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; the longer the match the longer the
draft as in suffix decoding, Oliaro et al. 2024, arXiv:2411.04975.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwenstack.engine.speculation.cost import StepCost
from qwenstack.engine.speculation.speculator import DraftRequest
from qwenstack.engine.speculation.suffix_index import MAX_MATCH, SuffixIndex
from qwenstack.engine.speculation.switch import Switch

_CLASSES = (2, 3, 4, 6, 9, MAX_MATCH)
"""Shortest match of each class."""
_PRIOR_CHANCES = (0.5, 0.65, 0.8, 0.88, 0.93, 0.985)
"""How often the token after a match is the right one: `benches/speculation.py`, 21 edits and 22 free texts."""
_PRIOR_WEIGHTS = (3.0, 3.0, 3.0, 3.0, 3.0, 8.0)
"""Tokens that outweigh the prior."""


class NgramSpeculator:
    """Copies what followed the same words before."""

    def __init__(self, cost: StepCost) -> None:
        """Begin with no sequence.

        Args:
            cost: what a row more costs a step.
        """
        self._cost = cost
        self._answers: dict[int, _Answer] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Return each sequence's probable continuation; mostly none in free text."""
        return [self._propose(request, num_running=len(requests)) for request in requests]

    def forget(self, key: int) -> None:
        """Drop a sequence's index."""
        self._answers.pop(key, None)

    def is_on(self, key: int) -> bool:
        """Whether the sequence is given drafts at present."""
        answer = self._answers.get(key)
        return answer is None or answer.switch.is_on

    def _propose(self, request: DraftRequest, *, num_running: int) -> list[int]:
        answer = self._answers.get(request.key)
        if answer is None:
            answer = self._answers[request.key] = _Answer(request.prompt_token_ids)
        answer.read(request.output_token_ids, self._cost)
        if answer.trial is not None:
            return []
        answer.try_next(self._cost, num_running=num_running, limit=request.limit)
        return answer.trial.drafts if answer.switch.is_on and answer.trial is not None else []


@dataclass(slots=True)
class _Trial:
    """A draft, given to the engine or not, and what came instead so far."""

    drafts: list[int]
    match_length: int
    num_tokens: int = 0
    """Tokens that came since."""
    is_over: bool = False


class _Answer:
    """One sequence: its text, what matches are worth in it, and whether drafts pay."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self._index = SuffixIndex(prompt_token_ids)
        self._chances = _Chances()
        self._num_read = 0
        self.switch = Switch()
        self.trial: _Trial | None = None

    def read(self, output_token_ids: Sequence[int], cost: StepCost) -> None:
        """Take in the tokens that are new, and judge the last drafts by them once they are done with."""
        for position in range(self._num_read, len(output_token_ids)):
            token_id = output_token_ids[position]
            if self.trial is not None:
                self._compare(self.trial, token_id)
            self._index.append(token_id)
        self._num_read = len(output_token_ids)
        trial = self.trial
        # What the engine was given is settled by its step; what it was not given takes a step for every token.
        if trial is not None and trial.num_tokens and (self.switch.is_on or trial.is_over):
            self.switch = self.switch.after(trial.num_tokens, cost.of(1 + len(trial.drafts)))
            self.trial = None

    def try_next(self, cost: StepCost, *, num_running: int, limit: int) -> None:
        """Look for drafts."""
        match = self._index.longest_match()
        drafts: list[int] = []
        length = 0
        if match is not None:
            length = match.length
            count = cost.draft_length(self._chances.from_match(length), num_running=num_running, limit=limit)
            drafts = self._index.continuation(match.end, count)
        self.trial = _Trial(drafts, length)

    def _compare(self, trial: _Trial, token_id: int) -> None:
        if trial.is_over:
            return
        place = trial.num_tokens
        trial.num_tokens += 1
        if place == len(trial.drafts):
            trial.is_over = True
            return
        is_hit = trial.drafts[place] == token_id
        self._chances.learn(trial.match_length + place, is_hit=is_hit)
        trial.is_over = not is_hit


class _Chances:
    """How likely the token after a match is the right one, by the length of the match, learnt from this answer."""

    def __init__(self) -> None:
        self._trials = list(_PRIOR_WEIGHTS)
        self._hits = [chance * weight for chance, weight in zip(_PRIOR_CHANCES, _PRIOR_WEIGHTS, strict=True)]

    def learn(self, match_length: int, *, is_hit: bool) -> None:
        """Take in one comparison."""
        at = bisect_right(_CLASSES, match_length) - 1
        self._trials[at] += 1
        self._hits[at] += is_hit

    def from_match(self, match_length: int) -> Iterator[float]:
        """Yield the chance of each draft if those before it are right: each that is makes the match longer."""
        while True:
            at = bisect_right(_CLASSES, match_length) - 1
            yield self._hits[at] / self._trials[at]
            match_length += 1
