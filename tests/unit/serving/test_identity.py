"""Stored keys: what each opens, for whom, and when a change counts."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from toy_embedder import ToyEmbedder
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError, StorageError
from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.access import BodyForm, body_form_of, declared_access
from qwenstack.serving.audit import MOST_WAITING, RequestAudit
from qwenstack.serving.identity import STRANGER, Access, Identity, KeyRing
from qwenstack.serving.key_watch import refresh, watching
from qwenstack.storage import ApiKeys, AuditLog, AuditRecord, Database, open_database

JSON = {"content-type": "application/json"}
KNOWN = Identity(tenant="t", key_id="k", accesses=frozenset({Access.INFERENCE}))
FORM = {"content-type": "multipart/form-data; boundary=x"}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.fixture
def texts(database: Database) -> dict[str, str]:
    """A key of each kind."""
    keys = ApiKeys(database)
    revoked = keys.create(name="revoked", tenant="ours", actor="me")
    keys.revoke(revoked.key.id, actor="me")
    return {
        "user": keys.create(name="user", tenant="ours", actor="me").text,
        "other tenant": keys.create(name="user", tenant="theirs", actor="me").text,
        "watcher": keys.create(name="watcher", tenant="ours", actor="me", scopes=["metrics"]).text,
        "other model": keys.create(name="narrow", tenant="ours", actor="me", models=["another"]).text,
        "revoked": revoked.text,
        "expired": ApiKeys(database, clock=lambda: 1.0).create(name="e", tenant="t", actor="me", lifetime_s=1).text,
        "nobody": "",
    }


EXPECTED = {
    Access.INFERENCE: {"user": 200, "other tenant": 200, "watcher": 403, "other model": 403},
    Access.METRICS: {"user": 403, "other tenant": 403, "watcher": 200, "other model": 403},
    Access.PUBLIC: dict.fromkeys(
        ("user", "other tenant", "watcher", "other model", "revoked", "expired", "nobody"), 200
    ),
}
"""What a route answers to whom; 401 to everybody else."""


@pytest.mark.anyio
async def test_sec_12_every_route_answers_each_kind_of_caller_as_expected(
    database: Database, texts: dict[str, str]
) -> None:
    app: FastAPI = create_app(ToyLLM(), ServeConfig(), database=database)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        for route in app.router.routes:
            access = declared_access(route)
            assert access is not None
            (method,) = route.methods - {"HEAD"}  # type: ignore[attr-defined]
            path = re.sub(r"\{\w+\}", "nothing", route.path.replace("{model_id:path}", "toy/echo"))  # type: ignore[attr-defined]
            for caller, text in texts.items():
                form = FORM if body_form_of(route) is BodyForm.UPLOAD else JSON
                headers = form | ({"Authorization": f"Bearer {text}"} if text else {})
                answer = await client.request(method, path, headers=headers, content=b"{}")
                expected = EXPECTED[access].get(caller, 401)
                # An empty body is wrong, and nothing is there, but for somebody who was let in.
                allowed = {200, 400, 404} if expected == 200 else {expected}
                if caller == "other model" and access is Access.INFERENCE:
                    allowed = {200, 400, 403, 404}
                assert answer.status_code in allowed, (path, caller)


@pytest.mark.anyio
async def test_sec_12_a_key_for_another_model_uses_none_on_any_wire(database: Database, texts: dict[str, str]) -> None:
    app = create_app(ToyLLM(fills_gaps=True), ServeConfig(), database=database, embedder=ToyEmbedder())
    bodies: dict[str, dict[str, object]] = {
        "/v1/chat/completions": CHAT,
        "/v1/completions": {"prompt": "x"},
        "/v1/embeddings": {"input": "x"},
        "/v1/messages": CHAT | {"model": "default", "max_tokens": 5},
        "/v1/messages/count_tokens": CHAT | {"model": "default"},
        "/api/chat": CHAT | {"model": "default"},
        "/api/generate": {"model": "default", "prompt": "x"},
        "/api/embed": {"model": "default", "input": "x"},
        "/api/embeddings": {"model": "default", "prompt": "x"},
        "/api/show": {"model": "default"},
        "/infill": {"input_prefix": "a", "input_suffix": "b"},
        "/v1/fim/completions": {"prompt": "a", "suffix": "b"},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [1]},
        "/apply-template": CHAT,
        "/qwen3/generate": {"prompt": "x"},
        "/v1/responses": {"input": "x"},
    }
    posts = {
        route.path  # type: ignore[attr-defined]
        for route in app.router.routes
        if "POST" in route.methods and body_form_of(route) is BodyForm.JSON  # type: ignore[attr-defined]
    }
    # What a batch asks is held to its key's models line by line (test_batches).
    assert set(bodies) == posts - {"/v1/batches"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        for path, body in bodies.items():
            for caller, expected in (("user", 200), ("other model", 403)):
                headers = {"Authorization": f"Bearer {texts[caller]}"}
                assert (await client.post(path, json=body, headers=headers)).status_code == expected, (path, caller)
        headers = {"X-Api-Key": texts["other model"]}
        assert (await client.get("/v1/models", headers=headers)).json()["data"] == []
        assert (await client.get("/api/tags", headers=headers)).json()["models"] == []
        assert (await client.get("/api/ps", headers=headers)).json()["models"] == []
        answer = await client.get("/v1/models/default", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")


@pytest.mark.anyio
async def test_sec_12_who_cannot_be_checked_is_a_stranger_with_an_answer_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret address of the keys")

    app = create_app(ToyLLM(), ServeConfig(api_keys=("sk-right-key",)))
    monkeypatch.setattr(KeyRing, "identify", fail)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        headers = {"authorization": "Bearer sk-right-key"}
        refused = await client.get("/v1/models", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["x-content-type-options"] == "nosniff"
        assert f"Request {refused.headers['x-request-id']} failed: RuntimeError" in caplog.text
        assert (await client.get("/livez", headers=headers)).status_code == 200
    assert "secret" not in f"{refused.text}{caplog.text}"


def test_sec_12_to_revoke_the_only_key_does_not_open_the_server(database: Database) -> None:
    keys = ApiKeys(database)
    ring = KeyRing((), keys.snapshot())
    assert ring.is_open
    made = keys.create(name="n", tenant="t", actor="me")
    refresh(ring, keys)
    assert not ring.is_open
    assert ring.identify(made.text, now_ms=0).tenant == "t"
    keys.revoke(made.key.id, actor="me")
    refresh(ring, keys)
    assert not ring.is_open
    assert ring.identify(made.text, now_ms=0) == ring.identify(None, now_ms=0) == STRANGER


def test_sec_12_what_is_closed_stays_closed_whatever_becomes_of_the_database(database: Database) -> None:
    keys = ApiKeys(database)
    made = keys.create(name="n", tenant="t", actor="me")
    ring = KeyRing((), keys.snapshot())
    database.write(lambda connection: connection.execute(text("DELETE FROM api_keys")))
    database.write(lambda connection: connection.execute(text("UPDATE state SET keys_revision = 0")))
    refresh(ring, keys)
    assert ring.revision == 0
    assert ring.identify(made.text, now_ms=0) == ring.identify(None, now_ms=0) == STRANGER


def test_a_damaged_key_opens_nothing_and_stops_nobody(database: Database) -> None:
    keys = ApiKeys(database)
    damaged, whole = (keys.create(name=name, tenant=name, actor="me") for name in ("damaged", "whole"))
    broken = text("UPDATE api_keys SET scopes = 'x' WHERE name = 'damaged'")
    database.write(lambda connection: connection.execute(broken))
    ring = KeyRing((), keys.snapshot())
    assert not ring.identify(damaged.text, now_ms=0).may(Access.INFERENCE)
    assert ring.identify(whole.text, now_ms=0).may(Access.INFERENCE)


def test_sec_12_a_server_for_others_starts_with_a_stored_key_alone(database: Database) -> None:
    config = ServeConfig(host="0.0.0.0")
    with pytest.raises(ConfigError, match="keys create"):
        create_app(ToyLLM(), config, database=database)
    ApiKeys(database).create(name="n", tenant="t", actor="me")
    create_app(ToyLLM(), config, database=database)


@pytest.mark.anyio
async def test_a_key_made_elsewhere_counts_within_a_second(database: Database) -> None:
    keys = ApiKeys(database)
    ring = KeyRing((), keys.snapshot())
    async with watching(ring, keys):
        made = await asyncio.to_thread(lambda: keys.create(name="n", tenant="t", actor="me"))
        async with asyncio.timeout(5):
            while ring.identify(made.text, now_ms=0).tenant != "t":
                await asyncio.sleep(0.02)


@pytest.fixture
async def watched(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ToyLLM(), ServeConfig(), database=database)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client,
    ):
        yield client


@pytest.mark.anyio
async def test_requests_are_in_the_audit_log_without_what_users_wrote(
    watched: httpx.AsyncClient, database: Database
) -> None:
    made = await asyncio.to_thread(lambda: ApiKeys(database).create(name="n", tenant="ours", actor="me"))
    async with asyncio.timeout(5):
        while (await watched.get("/v1/models")).status_code != 401:
            await asyncio.sleep(0.05)
    headers = {"Authorization": f"Bearer {made.text}"}
    secret = {"messages": [{"role": "user", "content": "my secret wish"}], "max_tokens": 3}
    answer = await watched.post("/v1/chat/completions", json=secret, headers=headers)
    await watched.get("/v1/models?key=hidden", headers={"Authorization": "Bearer wrong-and-secret"})
    await watched.get("/livez")
    log = AuditLog(database)
    async with asyncio.timeout(5):
        while not any(entry.record.subject == "POST /v1/chat/completions" for entry in log.newest()):
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    entries = [entry.record for entry in log.newest()]
    chat = next(record for record in entries if record.subject == "POST /v1/chat/completions")
    assert (chat.actor, chat.outcome) == (made.key.id, "200")
    assert chat.details["tenant"] == "ours"
    assert chat.details["request_id"] == answer.headers["x-request-id"]
    assert not any("livez" in record.subject for record in entries)
    assert database.path is not None
    stored = b"".join(path.read_bytes() for path in database.path.parent.iterdir() if path.is_file())
    for word in (b"secret wish", b"hidden", b"wrong-and-secret", made.text.partition(".")[2].encode()):
        assert word not in stored
    assert log.verify().broken_at is None


def test_what_cannot_be_written_is_counted_and_does_not_stop_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    written: list[AuditRecord] = []
    is_broken = True

    def append(records: object) -> None:
        if is_broken:
            raise StorageError("The disk is full.")
        written.extend(records)  # type: ignore[arg-type]

    lost: list[int] = []
    audit = RequestAudit(append, count_lost=lost.append)
    audit.note(KNOWN, "GET /a", status=200, request_id="1", duration_s=0.1)
    while not lost:
        time.sleep(0.01)
    is_broken = False
    audit.note(KNOWN, "GET /b", status=200, request_id="2", duration_s=0.1)
    audit.close()
    assert [record.subject for record in written] == ["GET /b"]
    assert lost == [1]
    assert "not written to the audit log" in caplog.text
    assert "again; 1 were lost" in caplog.text


def test_sec_22_what_waits_for_the_disk_is_bounded() -> None:
    lost: list[int] = []
    is_blocked, is_writing = threading.Event(), threading.Event()

    def append(_: object) -> None:
        is_writing.set()
        is_blocked.wait(60)

    audit = RequestAudit(append, count_lost=lost.append)
    audit.note(KNOWN, "GET /a", status=200, request_id="1", duration_s=0.1)
    assert is_writing.wait(10)
    for _ in range(MOST_WAITING + 5):
        audit.note(KNOWN, "GET /a", status=200, request_id="1", duration_s=0.1)
    assert sum(lost) == 5
    is_blocked.set()
    audit.close()
    audit.note(KNOWN, "GET /late", status=200, request_id="1", duration_s=0.1)
    assert sum(lost) == 6


def test_sec_22_strangers_fill_neither_the_disk_nor_the_room_of_those_who_are_known() -> None:
    written: list[AuditRecord] = []
    lost: list[int] = []
    audit = RequestAudit(written.extend, count_lost=lost.append)
    for number in range(3 * MOST_WAITING):
        status = 401 if number % 3 else 403
        audit.note(STRANGER, f"GET /{number}", status=status, request_id="1", duration_s=0.1)
    audit.note(KNOWN, "GET /a", status=200, request_id="1", duration_s=0.1)
    audit.close()
    assert lost == []
    request, folded = written
    assert (request.actor, request.subject) == ("k", "GET /a")
    assert (folded.actor, folded.action, folded.subject) == ("-", "requests.refused", "strangers")
    by_status = {"401": 2 * MOST_WAITING, "403": MOST_WAITING}
    assert folded.details == {"count": 3 * MOST_WAITING, "by_status": by_status, "seconds": folded.details["seconds"]}


def test_refusals_of_strangers_are_one_entry_for_each_while() -> None:
    written: list[AuditRecord] = []
    audit = RequestAudit(written.extend, count_lost=lambda _: None, fold_s=0.3)
    for rounds in (1, 2):
        for _ in range(50):
            audit.note(STRANGER, "GET /a", status=401, request_id="1", duration_s=0.1)
        deadline = time.monotonic() + 30
        while len(written) < rounds:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    audit.close()
    assert [record.details["count"] for record in written] == [50, 50]


def test_refusals_that_cannot_be_written_are_counted_each() -> None:
    def fail(records: object) -> None:
        raise StorageError("The disk is full.")

    lost: list[int] = []
    audit = RequestAudit(fail, count_lost=lost.append)
    for _ in range(7):
        audit.note(STRANGER, "GET /a", status=401, request_id="1", duration_s=0.1)
    audit.close()
    assert lost == [7]


def test_a_database_that_was_put_back_is_noticed_although_it_changed_as_often(database: Database) -> None:
    keys = ApiKeys(database)
    made = keys.create(name="before the copy", tenant="t", actor="me")
    ring = KeyRing((), keys.snapshot())
    known = keys.revision()
    keys.create(name="lost", tenant="t", actor="me")
    refresh(ring, keys)
    # What pg_restore does: the rows of the copy, and then as many changes as the servers had seen.
    database.write(lambda connection: connection.execute(text("DELETE FROM api_keys WHERE name = 'lost'")))
    database.write(
        lambda connection: connection.execute(text("UPDATE state SET keys_revision = :known"), {"known": known})
    )
    keys.revoke(made.key.id, actor="me")
    refresh(ring, keys)
    assert ring.identify(made.text, now_ms=0) == STRANGER
