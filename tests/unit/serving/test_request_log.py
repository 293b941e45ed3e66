"""What the log says of requests: one id from end to end, a line each, and nothing of what was asked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.core.errors import EngineError
from qwenstack.logs import LogConfig, logging_to
from qwenstack.serving import ServeConfig, create_app
from qwenstack.storage import ApiKeys, AuditLog, Database, open_database

CANARY = "canary-7f3a"
CHAT = "/v1/chat/completions"
KEY = "sk-a-configured-key"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


def ask(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


async def talk(
    requests: list[tuple[str, str, dict[str, Any]]],
    *,
    llm: ToyLLM | None = None,
    database: Database | None = None,
    form: Literal["text", "json"] = "json",
    **config: Any,
) -> tuple[list[httpx.Response], str]:
    """Send requests as (method, address, arguments of httpx); return the answers and the log."""
    stream = io.StringIO()
    serve = ServeConfig(**config)
    app = create_app(llm or ToyLLM(), serve, database=database)
    logs = LogConfig(format=form, level="debug")
    with logging_to(stream, logs, secrets=serve.api_keys):
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client,
        ):
            answers = [await client.request(method, url, **arguments) for method, url, arguments in requests]
    return answers, stream.getvalue()


def lines_of(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_one_id_names_a_request_in_header_log_audit_and_engine(database: Database, stream: bool) -> None:
    made = ApiKeys(database).create(name="n", tenant="team-a", actor="me")
    llm = ToyLLM()
    headers = {"Authorization": f"Bearer {made.text}", "X-Request-Id": "the-clients-name"}
    (answer,), log = await talk(
        [("POST", CHAT, {"json": ask(stream=stream), "headers": headers})], llm=llm, database=database
    )
    request_id = answer.headers["x-request-id"]
    (line,) = lines_of(log)
    del line["timestamp"]
    assert line.pop("ms") >= 0
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "qwenstack.serving.request_log",
        "request_id": request_id,
        "tenant": "team-a",
        "key_id": made.key.id,
        "client_request_id": "the-clients-name",
        "method": "POST",
        "route": CHAT,
        "status": 200,
    }
    assert llm.request_ids == [f"chatcmpl-{request_id}"]
    (row,) = [entry.record for entry in AuditLog(database).newest(10) if entry.record.action == "request"]
    assert row.details["request_id"] == request_id


@pytest.mark.anyio
async def test_sec_17_a_clients_own_request_id_is_a_label_and_nothing_else() -> None:
    llm = ToyLLM()
    names = ["same", "same", "a" * 200, "two words", "x\x1b[31m", "é"]
    requests = [("POST", CHAT, {"json": ask(), "headers": [("X-Request-Id", name.encode())]}) for name in names]
    answers, log = await talk(requests, llm=llm)
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len({*ids, *names}) == len(ids) + len(set(names))
    assert llm.request_ids == [f"chatcmpl-{request_id}" for request_id in ids]
    assert [line.get("client_request_id") for line in lines_of(log)] == ["same", "same", None, None, None, None]


@pytest.mark.anyio
async def test_a_header_of_a_proxy_that_comes_twice_is_no_reason_to_refuse() -> None:
    twice = [("X-Request-Id", "a"), ("X-Request-Id", "b")]
    (answer,), log = await talk([("GET", "/v1/models", {"headers": twice})])
    assert answer.status_code == 200
    assert lines_of(log)[0]["client_request_id"] == "b"


def hostile_requests() -> list[tuple[str, str, dict[str, Any]]]:
    key = {"Authorization": f"Bearer {KEY}"}
    return [
        ("POST", CHAT, {"json": ask(CANARY), "headers": key}),
        ("POST", CHAT, {"json": ask(CANARY, stream=True), "headers": key}),
        ("POST", CHAT, {"json": ask(CANARY, **{CANARY: 1}), "headers": key}),
        ("POST", CHAT, {"json": ask("x", model=CANARY, user=CANARY), "headers": key}),
        ("POST", CHAT, {"content": f'{{"{CANARY}'.encode(), "headers": key | {"content-type": "application/json"}}),
        ("POST", CHAT, {"json": ask("x"), "headers": {"Authorization": f"Bearer {CANARY}"}}),
        ("POST", CHAT, {"json": ask("x"), "headers": {"X-Api-Key": CANARY, "Cookie": CANARY, "User-Agent": CANARY}}),
        ("POST", "/v1/completions", {"json": {"prompt": CANARY}, "headers": key}),
        ("POST", "/v1/messages", {"json": ask(CANARY, model="default", max_tokens=5), "headers": key}),
        ("POST", "/api/chat", {"json": ask(CANARY, model="default"), "headers": key}),
        ("POST", "/tokenize", {"json": {"prompt": CANARY}, "headers": key}),
        ("GET", f"/v1/models/{CANARY}", {"headers": key}),
        ("GET", f"/v1/models?q={CANARY}", {"headers": key}),
        ("GET", f"/{CANARY}?{CANARY}={CANARY}", {"headers": key | {"Origin": f"http://{CANARY}.example"}}),
        ("GET", "/v1/models", {"headers": key | {"Host": f"{CANARY}.example"}}),
        ("GET", "/livez", {"headers": {"X-Request-Id": f"{CANARY} {CANARY}"}}),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"error": EngineError(CANARY)},
        {"error": ZeroDivisionError(CANARY)},
        {"fail_after": 2},
    ],
)
async def test_sec_24_nothing_that_callers_send_comes_into_the_log(
    form: Literal["text", "json"], fields: dict[str, Any]
) -> None:
    requests = hostile_requests()
    answers, log = await talk(requests, llm=ToyLLM(**fields), form=form, api_keys=(KEY,))
    for answer in answers:
        assert answer.headers["x-request-id"] in log
    assert CANARY not in log
    assert "a-configured" not in log
    assert ("failed" in log) == bool(fields)


@pytest.mark.anyio
async def test_a_failure_of_ours_has_the_place_and_the_request() -> None:
    (answer,), log = await talk([("POST", CHAT, {"json": ask()})], llm=ToyLLM(error=ZeroDivisionError("x")))
    failure, request = lines_of(log)
    assert failure["request_id"] == request["request_id"] == answer.headers["x-request-id"]
    assert "ZeroDivisionError" in failure["exception"]
    assert "service.py" in failure["exception"]
    assert (request["status"], request["level"]) == (500, "info")


@pytest.mark.anyio
async def test_probes_are_for_debug_and_strange_methods_have_no_name() -> None:
    requests = [("GET", "/livez", {}), ("GET", "/nowhere", {}), ("BREW", "/v1/models", {})]
    _, log = await talk(requests)
    assert [(line["level"], line["method"], line["route"]) for line in lines_of(log)] == [
        ("debug", "GET", "/livez"),
        ("info", "GET", "unmatched"),
        ("info", "OTHER", "/v1/models"),
    ]


@pytest.mark.anyio
async def test_lines_of_requests_can_be_left_out_but_failures_are_told() -> None:
    requests = [("POST", CHAT, {"json": ask()})]
    assert (await talk(requests, log_requests=False))[1] == ""
    _, log = await talk(requests, llm=ToyLLM(error=ZeroDivisionError("x")), log_requests=False)
    assert len(lines_of(log)) == 1
