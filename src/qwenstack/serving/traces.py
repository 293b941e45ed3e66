"""What is told of requests to a tracing system. Nothing here knows one; `otel` is the one that there is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from qwenstack.core.outputs import OutputDelta
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.serving.request_log import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request at the gate."""

    request_id: str
    tenant: str
    method: str
    route: str
    """The route's template, not the path."""
    parents: Mapping[str, str]
    """W3C's `traceparent` and `tracestate`, where the caller may call this: nobody else's trace is taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A prompt that goes to the engine."""

    operation: Literal["chat", "text_completion"]
    model: str
    request_id: str
    num_prompt_tokens: int
    params: SamplingParams


class RequestSpan(Protocol):
    """A request while it is served."""

    @property
    def trace_id(self) -> str:
        """The trace's id in hexadecimal; empty: there is none."""
        ...

    def finish(self, outcome: Outcome) -> None:
        """Tell what came of it."""
        ...


class GenerationSpan(Protocol):
    """A prompt while it is answered."""

    def note(self, delta: OutputDelta) -> None:
        """Take account of what a step gave."""
        ...


class Traces(Protocol):
    """Where spans go. A span is open within its `with` block; what ends the block early is the span's error."""

    def request(self, arrival: Arrival) -> AbstractContextManager[RequestSpan]:
        """Open the span of a request; those that are opened meanwhile lie in it."""
        ...

    def generation(self, generation: Generation) -> AbstractContextManager[GenerationSpan]:
        """Open the span of a prompt."""
        ...


class _Silence:
    """Costs nothing, says nothing."""

    trace_id = ""

    def finish(self, outcome: Outcome) -> None:
        pass

    def note(self, delta: OutputDelta) -> None:
        pass

    def request(self, arrival: Arrival) -> AbstractContextManager[_Silence]:  # noqa: ARG002
        return _NOTHING

    def generation(self, generation: Generation) -> AbstractContextManager[_Silence]:  # noqa: ARG002
        return _NOTHING


_SILENCE = _Silence()
_NOTHING = nullcontext(_SILENCE)
NO_TRACES: Traces = _SILENCE
"""Where nobody asked for traces."""
