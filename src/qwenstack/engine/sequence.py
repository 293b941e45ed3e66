"""One answer in the making: its tokens, its blocks, and how far it has been computed."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from qwenstack.core.outputs import TokenLogprob
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream
from qwenstack.engine.sampler import TokenHistory
from qwenstack.engine.scheduler import SequenceView


@dataclass(slots=True, kw_only=True)
class Sequence:
    """The engine owns it from admission to its last delta."""

    key: int
    request_id: str
    index: int
    prompt_token_ids: SequenceOf[int]
    params: SamplingParams
    seed: int
    history: TokenHistory
    answer: AnswerStream
    output_token_ids: list[int] = field(default_factory=list[int])
    blocks: list[int] = field(default_factory=list[int])
    num_computed_tokens: int = 0
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Collected while the prompt is read; None once delivered, or where nobody asked."""

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Return the token ids of positions `start … stop - 1`."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        return [*self.prompt_token_ids[start:stop], *self.output_token_ids[: max(stop - num_prompt, 0)]]

    def view(self) -> SequenceView:
        """Return what the plan needs to know."""
        return SequenceView(
            key=self.key,
            num_tokens=self.num_tokens,
            num_computed_tokens=self.num_computed_tokens,
            num_blocks=len(self.blocks),
        )
