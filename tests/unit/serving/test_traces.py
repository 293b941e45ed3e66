"""Spans of requests: their names, their place in the caller's trace, and nothing of what was asked."""

from __future__ import annotations

import asyncio
import http.server
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError, EngineError
from qwenstack.logs import LogConfig, logging_to
from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.otel import OtelTraces, open_traces

CANARY = "canary-7f3a"
KEY = "sk-a-configured-key"
CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENTS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


def ask(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": CANARY}], "stop": [CANARY], "user": CANARY} | fields


async def spans_of(
    body: dict[str, Any],
    *,
    llm: ToyLLM | None = None,
    path: str = CHAT,
    headers: dict[str, str] | None = None,
    **config: Any,
) -> tuple[httpx.Response, dict[str, ReadableSpan]]:
    """Send a request; return its answer and the spans by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(llm or ToyLLM(), ServeConfig(**config), traces=OtelTraces(provider))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        answer = await client.post(path, json=body, headers=headers)
    return answer, {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_four_spans_in_the_callers_trace(stream: bool) -> None:
    body = ask(stream=stream, seed=7, temperature=0.5, max_tokens=9, n=2, top_p=0.9)
    answer, spans = await spans_of(body, headers=PARENTS)
    assert set(spans) == {f"POST {CHAT}", "chat toy/echo", "prefill", "decode"}
    assert {f"{span.get_span_context().trace_id:032x}" for span in spans.values()} == {TRACE}
    request, generation = spans[f"POST {CHAT}"], spans["chat toy/echo"]
    assert f"{request.parent.span_id:016x}" == PARENT  # type: ignore[union-attr]
    for inner, outer in ((generation, request), (spans["prefill"], generation), (spans["decode"], generation)):
        assert inner.parent is not None
        assert inner.parent.span_id == outer.get_span_context().span_id
    assert (request.kind, generation.kind) == (SpanKind.SERVER, SpanKind.INTERNAL)
    request_id = answer.headers["x-request-id"]
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "qwenstack.request_id": request_id,
        "qwenstack.tenant": "",
    }
    attributes = dict(generation.attributes or {})
    assert 0 <= attributes.pop("gen_ai.response.time_to_first_chunk") < 60  # type: ignore[operator]
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "qwenstack",
        "gen_ai.request.model": "toy/echo",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": f"chatcmpl-{request_id}",
        "gen_ai.response.model": "toy/echo",
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": len(f"[user] {CANARY}"),
        "gen_ai.usage.output_tokens": 18,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 0,
    }


@pytest.mark.anyio
async def test_the_parts_of_an_answer_follow_each_other_without_a_gap() -> None:
    _, spans = await spans_of(ask(), llm=ToyLLM(first_step_s=0.05))
    generation, prefill, decode = spans["chat toy/echo"], spans["prefill"], spans["decode"]
    assert prefill.start_time == generation.start_time
    assert prefill.end_time == decode.start_time
    assert decode.end_time == generation.end_time
    assert prefill.end_time - prefill.start_time >= 45_000_000  # type: ignore[operator]


@pytest.mark.anyio
async def test_a_text_and_each_of_several_is_told_as_one() -> None:
    _, spans = await spans_of({"prompt": ["a", "b"]}, path="/v1/completions")
    assert "text_completion toy/echo" in spans
    assert "chat toy/echo" not in spans


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("llm", "status", "kind"),
    [
        (ToyLLM(error=ZeroDivisionError(CANARY)), 500, "ZeroDivisionError"),
        (ToyLLM(error=EngineError(CANARY)), 500, "EngineError"),
        (ToyLLM(fail_after=3), 500, "EngineError"),
    ],
)
async def test_a_failure_is_told_by_its_kind(llm: ToyLLM, status: int, kind: str) -> None:
    _, spans = await spans_of(ask(), llm=llm)
    request, generation = spans[f"POST {CHAT}"], spans["chat toy/echo"]
    assert (request.status.status_code, generation.status.status_code) == (StatusCode.ERROR, StatusCode.ERROR)
    assert (request.attributes or {})["error.type"] == str(status)
    assert (generation.attributes or {})["error.type"] == kind


@pytest.mark.anyio
@pytest.mark.parametrize("error", [None, ZeroDivisionError(CANARY), EngineError(CANARY)])
async def test_sec_24_no_span_holds_what_was_asked_answered_or_said_of_an_error(error: Exception | None) -> None:
    headers = PARENTS | {"Authorization": f"Bearer {KEY}", "X-Request-Id": CANARY}
    for path, body in ((CHAT, ask()), ("/v1/completions", {"prompt": CANARY, "stop": CANARY}), (CHAT, ask(x=CANARY))):
        _, spans = await spans_of(body, llm=ToyLLM(error=error), headers=headers, path=path, api_keys=(KEY,))
        told = "".join(span.to_json() for span in spans.values())
        assert "http.route" in told
        assert CANARY not in told
        assert KEY not in told
        assert not any(span.events for span in spans.values())


@pytest.mark.anyio
async def test_sec_17_a_stranger_does_not_choose_the_trace() -> None:
    answer, spans = await spans_of(ask(), headers=PARENTS, api_keys=(KEY,))
    (span,) = spans.values()
    assert answer.status_code == 401
    assert span.parent is None
    assert f"{span.get_span_context().trace_id:032x}" != TRACE


@pytest.mark.anyio
@pytest.mark.parametrize("parent", ["", "x", f"00-{TRACE}", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
async def test_what_is_no_parent_begins_a_trace(parent: str) -> None:
    answer, spans = await spans_of(ask(), headers={"traceparent": parent})
    assert answer.status_code == 200
    assert spans[f"POST {CHAT}"].parent is None


@pytest.mark.anyio
async def test_lines_of_the_log_name_the_trace_and_probes_have_none() -> None:
    stream = io.StringIO()
    with logging_to(stream, LogConfig(format="json")):
        await spans_of(ask(), headers=PARENTS)
    assert json.loads(stream.getvalue())["trace_id"] == TRACE
    _, spans = await spans_of({}, path="/livez")
    assert spans == {}


class _Receiver(http.server.BaseHTTPRequestHandler):
    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    received: list[tuple[str, bytes]] = []
    handler = type("Handler", (_Receiver,), {"received": received})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_a_receiver_gets_the_spans_as_the_protocol_has_them(
    receiver: tuple[str, list[tuple[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, received = receiver
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    traces = open_traces(url)
    app = create_app(ToyLLM(), ServeConfig(), traces=traces)

    async def talk() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
            await client.post(CHAT, json=ask(), headers=PARENTS)

    asyncio.run(talk())
    traces.close()
    assert {path for path, _ in received} == {"/v1/traces"}
    messages = [ExportTraceServiceRequest.FromString(body) for _, body in received]
    resources = [resource for message in messages for resource in message.resource_spans]
    known = {pair.key: pair.value.string_value for pair in resources[0].resource.attributes}
    assert (known["service.name"], known["deployment.environment.name"]) == ("qwenstack", "test")
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == {f"POST {CHAT}", "chat toy/echo", "prefill", "decode"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert not any(CANARY.encode() in body for _, body in received)


def test_a_receiver_that_is_away_costs_no_request_anything() -> None:
    traces = open_traces("http://127.0.0.1:9")
    app = create_app(ToyLLM(), ServeConfig(), traces=traces)

    async def talk() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
            return (await client.post(CHAT, json=ask())).status_code

    assert asyncio.run(talk()) == 200


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"otel\.endpoint"):
        open_traces("localhost:4318")


def test_who_asks_for_no_traces_loads_nothing_of_theirs() -> None:
    ours = ("opentelemetry.sdk", "opentelemetry.exporter", "qwenstack.serving.otel")
    code = (
        f"import sys, qwenstack.serving, qwenstack.cli.serve; print([n for n in sys.modules if n.startswith({ours})])"
    )
    folder = str(Path(__file__).parents[3])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert run.stdout.strip() == "[]"
