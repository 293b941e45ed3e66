"""What a speculator makes of an answer that is known: the steps an engine would take, without a model.

The engine keeps exactly the drafts that agree with what it chooses, so the count of steps is the true one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwenstack.engine.speculation.speculator import DraftRequest, Speculator


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedStep:
    """One step of the engine."""

    num_drafts: int
    num_tokens: int
    """Tokens it gave: the drafts that were right and the one after them."""


def replay(
    speculator: Speculator, prompt_token_ids: Sequence[int], answer_token_ids: Sequence[int], *, limit: int
) -> Iterator[ReplayedStep]:
    """Yield the steps after the first token, which the prompt gives; the sequence is forgotten at the end.

    Args:
        speculator: it sees one sequence, with key 0.
        prompt_token_ids: what was asked.
        answer_token_ids: all that was answered.
        limit: most drafts a step.
    """
    known = list(answer_token_ids[:1])
    while len(known) < len(answer_token_ids):
        room = len(answer_token_ids) - len(known) - 1
        request = DraftRequest(key=0, prompt_token_ids=prompt_token_ids, output_token_ids=known, limit=min(limit, room))
        (drafts,) = speculator.propose([request])
        chosen = answer_token_ids[len(known) : len(known) + len(drafts) + 1]
        num_right = next((at for at, draft in enumerate(drafts) if draft != chosen[at]), len(drafts))
        known.extend(chosen[: num_right + 1])
        yield ReplayedStep(num_drafts=len(drafts), num_tokens=num_right + 1)
    speculator.forget(0)
