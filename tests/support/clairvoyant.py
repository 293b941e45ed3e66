"""A speculator that knows the answers and lies now and then: every mixture of right and wrong guesses in short time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from qwenstack.engine.speculation import DraftRequest


class Clairvoyant:
    """Guesses from known answers; each token is wrong with probability `error_rate`."""

    def __init__(
        self,
        answers: Mapping[tuple[int, ...], Sequence[Sequence[int]]],
        *,
        vocab_size: int,
        error_rate: float,
        seed: int = 0,
    ) -> None:
        """Know the possible answers by prompt."""
        self._answers = answers
        self._vocab_size = vocab_size
        self._error_rate = error_rate
        self._random = random.Random(seed)

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Return guesses of random length."""
        return [self._guess(request) for request in requests]

    def forget(self, key: int) -> None:
        """Nothing is kept."""

    def _guess(self, request: DraftRequest) -> list[int]:
        done = list(request.output_token_ids)
        for answer in self._answers.get(tuple(request.prompt_token_ids), ()):
            if list(answer[: len(done)]) == done:
                size = self._random.randint(0, min(request.limit, 8))
                return [self._maybe_wrong(token) for token in answer[len(done) : len(done) + size]]
        return []

    def _maybe_wrong(self, token_id: int) -> int:
        if self._random.random() < self._error_rate:
            return self._random.randrange(self._vocab_size)
        return token_id
