"""One answer of the model, as it streams: shown piece by piece, stoppable, timed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Protocol, Self

from qwenstack.core.errors import EngineError
from qwenstack.core.messages import Message
from qwenstack.core.outputs import FinishReason, OutputDelta
from qwenstack.core.protocols import ModelCard
from qwenstack.core.sampling_params import SamplingParams


class ChatModel(Protocol):
    """What a conversation needs of a model."""

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        ...

    @property
    def default_sampling(self) -> Mapping[str, float | int]:
        """The sampling that the model's makers advise, by field of `SamplingParams`; empty where they do not."""
        ...

    def stream_chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams, *, enable_thinking: bool | None = None
    ) -> Generator[OutputDelta]:
        """Yield what each step adds to the answer; closing the generator cancels it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, whole or cut off, and how long it took."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None
    """None: the user stopped it."""
    ttft_s: float
    """Until the first token; until the end where there was none."""
    total_s: float

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; None where there was no second one."""
        decode_s = self.total_s - self.ttft_s
        return (self.num_tokens - 1) / decode_s if self.num_tokens > 1 and decode_s > 0 else None


class StopOnInterrupt:
    """While entered, the first Ctrl-C only sets `requested`; the second interrupts as usual.

    A `KeyboardInterrupt` in the middle of a step could leave the engine half-way; a wish that is read between two
    steps cannot.
    """

    def __init__(self) -> None:
        """Start with no wish to stop."""
        self.requested = False
        self._previous: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_interrupt(self, signal_number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as `signal` calls it
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def stream_answer(
    model: ChatModel,
    messages: Sequence[Message],
    params: SamplingParams,
    *,
    enable_thinking: bool | None,
    show: Callable[[str], None],
    is_stopped: Callable[[], bool] = lambda: False,
) -> Answer:
    """Let the model answer, showing each piece as it comes, until it ends or `is_stopped` says so.

    Raises:
        RequestError: the conversation does not fit the model.
        EngineError: the engine failed in the middle.
    """
    start = time.perf_counter()
    first: float | None = None
    pieces: list[str] = []
    num_tokens = 0
    finish_reason: FinishReason | None = None
    with contextlib.closing(model.stream_chat(messages, params, enable_thinking=enable_thinking)) as deltas:
        for delta in deltas:
            if delta.token_ids and first is None:
                first = time.perf_counter()
            num_tokens += len(delta.token_ids)
            if delta.text:
                pieces.append(delta.text)
                show(delta.text)
            finish_reason = delta.finish_reason
            if finish_reason == "error":
                raise EngineError(delta.error or "The engine failed while answering. Ask again.")
            if finish_reason is not None or is_stopped():
                break
    end = time.perf_counter()
    return Answer(
        text="".join(pieces),
        num_tokens=num_tokens,
        finish_reason=finish_reason,
        ttft_s=(end if first is None else first) - start,
        total_s=end - start,
    )
