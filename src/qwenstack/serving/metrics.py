"""What operators see: vLLM's metric names for the model, the customary names for HTTP and gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwenstack.core.errors import RequestError
from qwenstack.core.outputs import FinishReason, OutputDelta
from qwenstack.core.protocols import EngineStats
from qwenstack.serving.errors import LimitKind
from qwenstack.serving.request_log import Outcome

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ITL_BUCKETS_S = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_E2E_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


class Metrics:
    """The counters of one server."""

    def __init__(self, model_name: str) -> None:
        """Create them in a registry of their own, so that two servers in one process do not meet."""
        self._model_name = model_name
        self._registry = CollectorRegistry()
        self.time_to_first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "Time from a request's arrival to its first token.", _TTFT_BUCKETS_S
        )
        self.inter_token_latency = self._histogram(
            "vllm:inter_token_latency_seconds", "Time between two tokens of one answer.", _ITL_BUCKETS_S
        )
        self._e2e_latency = self._family(
            "vllm:e2e_request_latency_seconds", "Time from a request's arrival to its end.", _E2E_BUCKETS_S
        )
        self.e2e_latency = self._e2e_latency.labels(model_name)
        self._prompt_tokens = self._family("vllm:request_prompt_tokens", "Tokens of a request's input.", _TOKEN_BUCKETS)
        self._success = Counter(
            "vllm:request_success",
            "Answers by how they ended.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._http_requests = Counter(
            "http_requests",
            "HTTP requests by route and status.",
            ["method", "handler", "status"],
            registry=self._registry,
        )
        self._http_duration = Histogram(
            "http_request_duration_seconds", "Time to the end of the HTTP answer.", ["handler"], registry=self._registry
        )
        self._grpc_calls = Counter(
            "grpc_server_handled",
            "gRPC calls by method and code.",
            ["grpc_method", "grpc_code"],
            registry=self._registry,
        )
        self._grpc_duration = Histogram(
            "grpc_server_handling_seconds",
            "Time to the end of the gRPC call.",
            ["grpc_method"],
            registry=self._registry,
        )
        self._limited = Counter(
            "qwenstack:limited_requests",
            "Requests refused since their caller had reached a limit.",
            ["limit"],
            registry=self._registry,
        )
        self._audit_lost = Counter(
            "qwenstack:audit_records_lost",
            "Requests that could not be written to the audit log.",
            registry=self._registry,
        )

    def count_limited(self, limit: LimitKind) -> None:
        """Count a request that was refused, by the limit that its caller had reached."""
        self._limited.labels(limit).inc()

    def count_lost_audit(self, count: int) -> None:
        """Count requests that were not written down."""
        self._audit_lost.inc(count)

    def count_answer(self, finish_reason: FinishReason) -> None:
        """Count one finished answer."""
        self._success.labels(self._model_name, finish_reason).inc()

    def count_embedding(
        self, model_name: str, *, finished_reason: str, duration_s: float, num_tokens: int | None
    ) -> None:
        """Count one request for embeddings; `num_tokens` of one that was computed to its end."""
        self._success.labels(model_name, finished_reason).inc()
        self._e2e_latency.labels(model_name).observe(duration_s)
        if num_tokens is not None:
            self._prompt_tokens.labels(model_name).observe(num_tokens)

    def count_http(self, outcome: Outcome) -> None:
        """Count one HTTP request."""
        self._http_requests.labels(outcome.method, outcome.route, str(outcome.status)).inc()
        self._http_duration.labels(outcome.route).observe(outcome.duration_s)

    def count_grpc(self, outcome: Outcome) -> None:
        """Count one gRPC call."""
        self._grpc_calls.labels(outcome.route, str(outcome.status)).inc()
        self._grpc_duration.labels(outcome.route).observe(outcome.duration_s)

    def render(self, stats: EngineStats | None) -> bytes:
        """Write the page that Prometheus reads; without `stats` the engine's own lines are left out."""
        page = generate_latest(self._registry)
        if stats is None:
            return page
        engine = CollectorRegistry()
        engine.register(_EngineCollector(stats, self._model_name))
        return page + generate_latest(engine)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return self._family(name, text, buckets).labels(self._model_name)

    def _family(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ["model_name"], buckets=buckets, registry=self._registry)


class RequestTimer:
    """Measures one request of the engine: first token, gaps, end."""

    def __init__(self, metrics: Metrics) -> None:
        """Start the clock."""
        self._metrics = metrics
        self._arrived_at = time.perf_counter()
        self._last_token_at: dict[int, float] = {}

    def note(self, delta: OutputDelta) -> None:
        """Take account of what one step added."""
        if delta.token_ids:
            now = time.perf_counter()
            last = self._last_token_at.get(delta.index)
            if last is not None:
                self._metrics.inter_token_latency.observe((now - last) / len(delta.token_ids))
            elif not self._last_token_at:
                self._metrics.time_to_first_token.observe(now - self._arrived_at)
            self._last_token_at[delta.index] = now
        if delta.finish_reason is not None:
            self._metrics.count_answer(delta.finish_reason)

    def finish(self) -> None:
        """Take account of the request's end."""
        self._metrics.e2e_latency.observe(time.perf_counter() - self._arrived_at)


class EmbeddingTimer:
    """Measures one request for embeddings, however it ends."""

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        """Start the clock."""
        self._metrics = metrics
        self._model_name = model_name
        self._started_at = time.perf_counter()
        self._num_tokens: int | None = None

    def finish(self, num_tokens: int) -> None:
        """Note that all was computed, and how much."""
        self._num_tokens = num_tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RequestError):
            return  # nothing was embedded: HTTP's own counters have it
        self._metrics.count_embedding(
            self._model_name,
            finished_reason="stop" if error is None else "error" if isinstance(error, Exception) else "abort",
            duration_s=time.perf_counter() - self._started_at,
            num_tokens=self._num_tokens,
        )


class _EngineCollector(Collector):
    """The engine's numbers of one moment, as Prometheus families."""

    def __init__(self, stats: EngineStats, model_name: str) -> None:
        self._stats = stats
        self._labels = [model_name]

    def collect(self) -> Iterable[Metric]:
        stats = self._stats
        gauges: tuple[tuple[str, str, float], ...] = (
            ("vllm:num_requests_running", "Requests in the running batch.", stats.num_requests_running),
            ("vllm:num_requests_waiting", "Requests that wait for a place.", stats.num_requests_waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", stats.kv_cache_usage),
        )
        counters: tuple[tuple[str, str, float], ...] = (
            ("vllm:num_preemptions", "Requests whose memory was taken for another.", stats.num_preemptions),
            ("vllm:prompt_tokens", "Prompt tokens computed or found in the cache.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            ("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead.", stats.num_draft_tokens),
            ("vllm:spec_decode_num_accepted_tokens", "Guesses that were right.", stats.num_accepted_tokens),
            (
                "qwenstack:prefix_cache_disk_hits",
                "Prompt tokens found in the prefix cache's files.",
                stats.prefix_cache_disk_hits,
            ),
            (
                "qwenstack:repetition_stops",
                "Answers ended because they only repeated themselves.",
                stats.num_repetition_stops,
            ),
            ("qwenstack:engine_steps", "Steps of the engine.", stats.num_steps),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric(self._labels, value)
            yield gauge
        for name, text, value in counters:
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric(self._labels, value)
            yield counter
