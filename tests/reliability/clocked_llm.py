"""The `stub` engine: a fixed token clock. Token k says its own number, so that a lost or doubled one is seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from toy_llm import CARD, ToyLLM

from qwenstack.core.errors import CapacityError
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.protocols import ModelCard
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams

DEFAULT_TOKENS = 8


@dataclass
class ClockedLLM(ToyLLM):
    """A token at each tick of an answer's clock; what finds no seat waits, and what may not wait is refused."""

    token_s: float = 0.0
    padding: int = 0
    """Characters that each token is longer."""
    num_seats: int = 1_000_000
    max_waiting: int = 1_000_000
    card: ModelCard = field(default_factory=lambda: replace(CARD, max_model_len=1 << 20))

    def __post_init__(self) -> None:
        self._seats = asyncio.Semaphore(self.num_seats)

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = RequestOptions(),
    ) -> AsyncGenerator[OutputDelta]:
        if self.num_open >= self.num_seats + self.max_waiting:
            raise CapacityError(f"The queue is full: {self.max_waiting} requests wait. Try again in a moment.")
        self.num_open += 1
        try:
            async with self._seats:
                for index in range(params.n):
                    async for delta in self._tick(params, request_id, index):
                        yield delta
        finally:
            self.num_open -= 1

    async def _tick(self, params: SamplingParams, request_id: str, index: int) -> AsyncGenerator[OutputDelta]:
        clock = asyncio.get_running_loop().time
        began, limit = clock(), params.max_tokens or DEFAULT_TOKENS
        for number in range(limit):
            await asyncio.sleep(max(0.0, began + (number + 1) * self.token_s - clock()))
            self.num_steps += 1
            yield OutputDelta(
                request_id=request_id,
                index=index,
                text=f"{number} ".ljust(self.padding, "."),
                token_ids=(number % 256,),
                num_generated_tokens=1,
                finish_reason="length" if number + 1 == limit else None,
            )
