"""What may look over the engine's shoulder: a journal, a recorder for the time after a death, a clock.

None of them changes what is computed. `SILENT` is all three and does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from qwenstack.core.outputs import FinishReason
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams

StepPhase = Literal["plan", "apply", "build_batch", "forward", "logits", "choose", "rest"]
"""The parts of a step in their order; `rest` is what lies between the last choice and the step's end."""


class Journal(Protocol):
    """Is told what goes into the engine and what comes out. A step's number is how many were begun before it."""

    def admitted(
        self,
        step: int,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        options: RequestOptions,
        seed: int,
    ) -> None:
        """Note a request that was queued before step `step`; `seed` is the one it runs with."""
        ...

    def aborted(self, step: int, request_id: str) -> None:
        """Note that somebody gave a request up before step `step`."""
        ...

    def finished(
        self, step: int, request_id: str, index: int, token_ids: Sequence[int], finish_reason: FinishReason
    ) -> None:
        """Note the end of an answer in step `step`; `token_ids` are all of it, end token and forced ones included."""
        ...

    def adapter_loaded(self, step: int, name: str, path: Path, digest: str) -> None:
        """Note that requests from step `step` on may name an adapter; `digest` is that of its `AdapterInfo`."""
        ...

    def adapter_unloaded(self, step: int, name: str) -> None:
        """Note that requests from step `step` on may not name an adapter any more."""
        ...


class StepRecorder(Protocol):
    """Knows which requests are computed at this moment."""

    def computing(self, request_ids: Sequence[str]) -> None:
        """Note the requests of the step that is about to run."""
        ...


class StepClock(Protocol):
    """Measures where a step's time goes."""

    def enter(self, phase: StepPhase) -> None:
        """End the phase before, if there is one, and begin this one."""
        ...

    def leave(self) -> None:
        """End the last phase of a step."""
        ...


class Silent:
    """A journal, a recorder and a clock that do nothing."""

    def admitted(
        self,
        step: int,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        options: RequestOptions,
        seed: int,
    ) -> None:
        """Do nothing."""

    def aborted(self, step: int, request_id: str) -> None:
        """Do nothing."""

    def finished(
        self, step: int, request_id: str, index: int, token_ids: Sequence[int], finish_reason: FinishReason
    ) -> None:
        """Do nothing."""

    def adapter_loaded(self, step: int, name: str, path: Path, digest: str) -> None:
        """Do nothing."""

    def adapter_unloaded(self, step: int, name: str) -> None:
        """Do nothing."""

    def computing(self, request_ids: Sequence[str]) -> None:
        """Do nothing."""

    def enter(self, phase: StepPhase) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""


SILENT = Silent()
