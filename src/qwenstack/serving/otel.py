"""Traces for OpenTelemetry, in the words of its conventions for generative AI; the extra `otel` has what it needs.

Prompts, answers, stop strings and the messages of errors are never recorded.

Source: OpenTelemetry semantic conventions for GenAI v0.1.0 (client inference) and for HTTP (server spans).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from importlib.metadata import version
from types import TracebackType
from typing import Self

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from qwenstack.core.errors import ConfigError
from qwenstack.core.outputs import OutputDelta
from qwenstack.serving.request_log import Outcome
from qwenstack.serving.traces import Arrival, Generation

_SERVER_FAULTS = 500
_Attribute = str | int | float | bool | list[str]


class OtelTraces:
    """Sends spans through a provider."""

    def __init__(self, provider: TracerProvider) -> None:
        """Take over a provider."""
        self._provider = provider
        self._tracer = provider.get_tracer("qwenstack", version("qwenstack"))
        self._propagator = TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def request(self, arrival: Arrival) -> Generator[_RequestSpan]:
        """Open the span of a request, under the caller's where there is one."""
        span = self._tracer.start_span(
            f"{arrival.method} {arrival.route}",
            context=self._propagator.extract(arrival.parents) if arrival.parents else None,
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": arrival.method,
                "http.route": arrival.route,
                "qwenstack.request_id": arrival.request_id,
                "qwenstack.tenant": arrival.tenant,
            },
        )
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield _RequestSpan(span)

    def generation(self, generation: Generation) -> AbstractContextManager[_GenerationSpan]:
        """Open the span of a prompt."""
        return _GenerationSpan(self._tracer, generation)

    def close(self) -> None:
        """Send what is waiting, and stop."""
        self._provider.shutdown()


class _RequestSpan:
    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def finish(self, outcome: Outcome) -> None:
        self._span.set_attribute("http.response.status_code", outcome.status)
        if isinstance(outcome.status, int) and outcome.status >= _SERVER_FAULTS:
            self._span.set_attribute("error.type", str(outcome.status))
            self._span.set_status(Status(StatusCode.ERROR))


class _GenerationSpan:
    """A prompt's span, with one inside for the time to the first token, waiting included, and one for the rest."""

    def __init__(self, tracer: Tracer, generation: Generation) -> None:
        self._tracer = tracer
        self._generation = generation
        self._started_ns = time.time_ns()
        self._first_token_ns: int | None = None
        self._num_generated = 0
        self._num_reasoning = 0
        self._num_cached = 0
        self._reasons: dict[int, str] = {}
        self._span = tracer.start_span(
            f"{generation.operation} {generation.model}",
            kind=SpanKind.INTERNAL,
            attributes=_request_attributes(generation),
            start_time=self._started_ns,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended_ns = time.time_ns()
        first_ns = self._first_token_ns
        self._part("prefill", self._started_ns, first_ns or ended_ns)
        if first_ns is not None:
            self._part("decode", first_ns, ended_ns)
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", (first_ns - self._started_ns) / 1e9)
        self._span.set_attributes(self._response_attributes())
        if kind is not None:
            # A reader who leaves is no failure of ours, but the answer did not come to its end.
            self._span.set_attribute("error.type", kind.__qualname__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(ended_ns)

    def note(self, delta: OutputDelta) -> None:
        if delta.num_generated_tokens and self._first_token_ns is None:
            self._first_token_ns = time.time_ns()
        self._num_generated += delta.num_generated_tokens
        self._num_reasoning += delta.num_reasoning_tokens
        self._num_cached = max(self._num_cached, delta.num_cached_tokens)
        if delta.finish_reason is not None:
            self._reasons[delta.index] = delta.finish_reason

    def _part(self, name: str, started_ns: int, ended_ns: int) -> None:
        part = self._tracer.start_span(name, context=set_span_in_context(self._span), start_time=started_ns)
        part.end(ended_ns)

    def _response_attributes(self) -> dict[str, _Attribute]:
        return {
            "gen_ai.response.id": self._generation.request_id,
            "gen_ai.response.model": self._generation.model,
            "gen_ai.response.finish_reasons": [self._reasons[index] for index in sorted(self._reasons)],
            "gen_ai.usage.input_tokens": self._generation.num_prompt_tokens,
            "gen_ai.usage.output_tokens": self._num_generated,
            "gen_ai.usage.cache_read.input_tokens": self._num_cached,
            "gen_ai.usage.reasoning.output_tokens": self._num_reasoning,
        }


def _request_attributes(generation: Generation) -> dict[str, _Attribute]:
    params = generation.params
    known: dict[str, _Attribute | None] = {
        "gen_ai.operation.name": generation.operation,
        "gen_ai.provider.name": "qwenstack",
        "gen_ai.request.model": generation.model,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": params.n if params.n > 1 else None,
        "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
        "gen_ai.request.presence_penalty": params.presence_penalty or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def open_traces(endpoint: str) -> OtelTraces:
    """Send spans to an OTLP receiver over HTTP, in the background.

    The library also reads the standard variables `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
    `OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS`.

    Args:
        endpoint: the receiver's base address, such as http://127.0.0.1:4318.

    Raises:
        ConfigError: it is no address.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"`otel.endpoint` is {endpoint[:200]!r}; it must begin with http:// or https://.")
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    ours = Resource({"service.name": "qwenstack", "service.version": version("qwenstack")})
    # The library would end its thread at exit by itself, after we closed it.
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OtelTraces(provider)
