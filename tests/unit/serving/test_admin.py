"""The administration: who gets in, what it changes, and that the public application has nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import text
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError
from qwenstack.serving import ServeConfig, admin_config, create_admin_app, create_app
from qwenstack.serving.access import declared_access
from qwenstack.serving.config import is_guessable
from qwenstack.serving.identity import LOCAL_ADMIN, Access
from qwenstack.storage import ApiKeys, AuditLog, Database, open_database

FILE_KEY = "qsa-the-key-of-the-file-on-this-machine"
ADMIN = {"authorization": f"Bearer {FILE_KEY}"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.fixture
def public(llm: ToyLLM, database: Database) -> FastAPI:
    return create_app(llm, ServeConfig(admin_keys=(FILE_KEY,)), database=database)


@pytest.fixture
def app(public: FastAPI) -> FastAPI:
    return create_admin_app(public, admin_config(ServeConfig(), host="127.0.0.1", port=8001))


def client_of(app: FastAPI, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8001", headers=headers or {}
    )


@pytest.fixture
async def admin(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, ADMIN) as client:
        yield client


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and address, with something in the place of parameters."""
    routes = [cast("APIRoute", route) for route in app.router.routes]
    return [(method, route.path.replace("{", "").replace("}", "")) for route in routes for method in route.methods]


@pytest.mark.anyio
async def test_sec_12_every_admin_route_answers_each_kind_of_caller_as_expected(
    app: FastAPI, database: Database
) -> None:
    assert {declared_access(route) for route in app.router.routes} == {Access.ADMIN}
    async with client_of(app) as client:
        for method, path in routes_of(app):  # before any key was made, on the loopback: closed all the same
            assert (await client.request(method, path, headers=JSON, content=b"{}")).status_code == 401, path
    keys = ApiKeys(database)
    user, other, watcher = (
        keys.create(name="n", tenant=tenant, actor="me", scopes=scopes).text
        for tenant, scopes in (("ours", ["inference"]), ("theirs", ["inference"]), ("ours", ["metrics"]))
    )
    stored = keys.create(name="n", tenant="ours", actor="me", scopes=["admin"]).text
    app = create_admin_app(
        create_app(ToyLLM(), ServeConfig(admin_keys=(FILE_KEY,), api_keys=("configured-key",)), database=database),
        admin_config(ServeConfig(), host="127.0.0.1", port=8001),
    )
    callers = {"": 401, "unknown-key": 401, user: 403, other: 403, watcher: 403, "configured-key": 403}
    async with client_of(app) as client:
        for method, path in [*routes_of(app), ("GET", "/nothing"), ("GET", "/v1/models"), ("GET", "/livez")]:
            for key, expected in callers.items():
                headers = JSON | ({"authorization": f"Bearer {key}"} if key else {})
                answer = await client.request(method, path, headers=headers, content=b"{}")
                assert answer.status_code == expected, (method, path, key)
            for key in (stored, FILE_KEY):
                answer = await client.request(
                    method, path, headers=JSON | {"authorization": f"Bearer {key}"}, content=b"{}"
                )
                assert answer.status_code in {200, 400, 404}, (method, path)


@pytest.mark.anyio
async def test_sec_12_the_public_application_has_no_admin_route_and_its_key_opens_nothing_there(
    public: FastAPI, database: Database
) -> None:
    assert not any(declared_access(route) is Access.ADMIN for route in public.router.routes)
    async with client_of(public) as client:
        assert (await client.get("/v1/models")).status_code == 200  # nobody made a key: open, as before
        assert (await client.get("/v1/models", headers=ADMIN)).status_code == 403
        assert (await client.get("/admin/v1/keys")).status_code == 404


def test_sec_12_without_a_database_there_is_no_administration(llm: ToyLLM) -> None:
    with pytest.raises(ConfigError, match="audit log"):
        create_admin_app(create_app(llm, ServeConfig()), ServeConfig())


@pytest.mark.anyio
async def test_sec_13_names_and_pages_of_others_are_refused(app: FastAPI, public: FastAPI) -> None:
    config = ServeConfig(allowed_hosts=("chat.example",), allowed_origins=("https://chat.example",))
    app = create_admin_app(public, admin_config(config, host="127.0.0.1", port=8001))
    async with client_of(app, ADMIN) as client:
        for headers in ({"host": "chat.example"}, {"origin": "https://chat.example"}, {"sec-fetch-site": "cross-site"}):
            assert (await client.get("/admin/v1/keys", headers=headers)).status_code == 403
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert (await client.post("/admin/v1/keys", content=b"name=x", headers=form)).status_code == 415
        lax = b'{"name": "a", "expires_in_s": Infinity}'
        assert (await client.post("/admin/v1/keys", content=lax, headers=JSON)).status_code == 400
        assert (await client.post("/admin/v1/keys", content=b" " * 70_000, headers=JSON)).status_code == 413


@pytest.mark.anyio
async def test_a_key_is_made_used_listed_and_revoked(
    admin: httpx.AsyncClient, public: FastAPI, database: Database
) -> None:
    asked = {"name": "ci", "tenant": "team-a", "scopes": ["inference"], "models": ["toy/echo"], "expires_in_s": 60}
    made = (await admin.post("/admin/v1/keys", json=asked)).json()
    assert (made["tenant"], made["models"], made["state"]) == ("team-a", ["toy/echo"], "open")
    assert made["expires_at"] - made["created_at"] == 60
    bearer = {"authorization": f"Bearer {made['key']}"}
    async with client_of(public) as client:
        assert (await client.get("/v1/models", headers=bearer)).status_code == 200  # at once
        assert (await client.get("/v1/models")).status_code == 401
        shown = (await admin.get(f"/admin/v1/keys/{made['id']}")).json()
        assert shown == {name: value for name, value in made.items() if name != "key"}
        revoked = (await admin.delete(f"/admin/v1/keys/{made['id']}")).json()
        assert revoked["state"] == "revoked"
        assert (await admin.delete(f"/admin/v1/keys/{made['id']}")).json() == revoked
        assert (await client.get("/v1/models", headers=bearer)).status_code == 401
    acts = [entry.record for entry in AuditLog(database).after(0) if entry.record.action.startswith("key.")]
    assert [(act.actor, act.action, act.subject) for act in acts] == [
        (LOCAL_ADMIN, "key.create", made["id"]),
        (LOCAL_ADMIN, "key.revoke", made["id"]),
    ]


@pytest.mark.anyio
async def test_keys_come_in_pages_that_hold_each_once(admin: httpx.AsyncClient, database: Database) -> None:
    instants = iter([1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4])  # of each key and of its record
    keys = ApiKeys(database, clock=lambda: next(instants))
    made = {keys.create(name="n", tenant="t", actor="me").key.id for _ in range(7)}
    found: list[str] = []
    after: dict[str, str] = {}
    has_more = True
    while has_more:
        page = (await admin.get("/admin/v1/keys", params={"limit": "3", **after})).json()
        found += [key["id"] for key in page["data"]]
        after, has_more = {"after": found[-1]}, page["has_more"]
    assert len(found) == 7
    assert set(found) == made
    assert found == [key.id for key in keys.all()]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/admin/v1/keys", {}, 400, "name"),
        ("POST", "/admin/v1/keys", {"name": ""}, 400, "name"),
        ("POST", "/admin/v1/keys", {"name": "a", "tenant": "a b"}, 400, "tenant"),
        ("POST", "/admin/v1/keys", {"name": "a", "scopes": ["root"]}, 400, "scopes[0]"),
        ("POST", "/admin/v1/keys", {"name": "a", "scopes": []}, 400, "scopes"),
        ("POST", "/admin/v1/keys", {"name": "a", "models": ["default"]}, 400, "models"),
        ("POST", "/admin/v1/keys", {"name": "a", "expires_in_s": 0}, 400, "expires_in_s"),
        ("POST", "/admin/v1/keys", {"name": "a", "key": "chosen"}, 400, "key"),
        ("GET", "/admin/v1/keys?limit=0", None, 400, "limit"),
        ("GET", "/admin/v1/keys?limit=all", None, 400, "limit"),
        ("GET", "/admin/v1/keys?after=nobody", None, 400, "after"),
        ("GET", "/admin/v1/keys/nobody", None, 404, "key_id"),
        ("DELETE", "/admin/v1/keys/nobody", None, 404, "key_id"),
        ("GET", "/admin/v1/audit?after=-1", None, 400, "after"),
        ("GET", "/admin/v1/audit?order=up", None, 400, "order"),
        ("GET", "/admin/v1/audit/verify?expect=zz", None, 400, "expect"),
    ],
)
async def test_what_is_wrong_is_named(
    admin: httpx.AsyncClient, database: Database, method: str, path: str, body: object, status: int, param: str
) -> None:
    answer = await admin.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert not any(entry.record.action.startswith("key.") for entry in AuditLog(database).newest())


@pytest.mark.anyio
async def test_the_model_its_adapters_and_its_engine_are_shown(admin: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.adapters = ("legal",)
    shown = (await admin.get("/admin/v1/models")).json()
    assert [model["id"] for model in shown["data"]] == ["toy/echo", "legal"]
    assert shown["engine"]["num_blocks_total"] == 10
    llm.is_ready = False
    assert (await admin.get("/admin/v1/models")).json()["engine"] is None


@pytest.mark.anyio
async def test_the_log_is_read_in_both_directions_and_checked(
    admin: httpx.AsyncClient, app: FastAPI, database: Database
) -> None:
    app.state.parts.audit.close()  # so that these requests are not in it themselves
    keys = ApiKeys(database)
    for number in range(5):
        keys.create(name=str(number), tenant="t", actor="me")

    async def numbers(**params: str) -> tuple[list[int], bool]:
        page = (await admin.get("/admin/v1/audit", params=params)).json()
        return [entry["seq"] for entry in page["data"]], page["has_more"]

    assert await numbers(limit="2") == ([5, 4], True)
    assert await numbers(limit="2", after="2") == ([1], False)
    assert await numbers(limit="2", order="asc") == ([1, 2], True)
    assert await numbers(after="3", order="asc") == ([4, 5], False)
    whole = (await admin.get("/admin/v1/audit/verify")).json()
    assert (whole["is_whole"], whole["num_entries"], whole["broken_at"]) == (True, 5, None)
    expected = {"expect": whole["last_hash"]}
    await asyncio.to_thread(lambda: keys.create(name="6", tenant="t", actor="me"))
    assert (await admin.get("/admin/v1/audit/verify", params=expected)).json()["is_whole"]
    database.write(lambda connection: connection.execute(text("UPDATE audit SET actor = 'you' WHERE seq = 5")))
    broken = (await admin.get("/admin/v1/audit/verify", params=expected)).json()
    assert (broken["is_whole"], broken["broken_at"], broken["has_expected"]) == (False, 5, False)


@pytest.mark.anyio
async def test_the_document_names_every_route(admin: httpx.AsyncClient, app: FastAPI) -> None:
    document = (await admin.get("/openapi.json")).json()
    found = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    routes = [cast("APIRoute", route) for route in app.router.routes]
    assert found == {(method, route.path) for route in routes for method in route.methods} - {("GET", "/openapi.json")}
    assert all("security" in operation for path in document["paths"].values() for operation in path.values())


@pytest.mark.parametrize(
    "key",
    [
        *("changeme", "CHANGE-ME", "change_me_now", "dev-secret-change-me", "password123", "sk-your-api-key"),
        *("12345678", "sk-12345678", "abcdefgh", "hgfedcba", "aaaaaaaaaa", "ababababab", "--------"),
    ],
)
def test_sec_25_keys_that_everybody_tries_first_are_refused(key: str) -> None:
    assert is_guessable(key)
    with pytest.raises(ConfigError, match="tries first") as caught:
        ServeConfig(api_keys=(key,))
    assert key not in str(caught.value)


def test_keys_that_somebody_made_are_not_taken_for_guesses() -> None:
    for key in ("sk-right-key", "3f8a1c77", "correct horse battery".replace(" ", "-"), "q1w2e3r4t5-of-mine"):
        assert not is_guessable(key)


@pytest.mark.anyio
async def test_a_key_is_limited_and_its_use_is_told(
    app: FastAPI, public: FastAPI, admin: httpx.AsyncClient, database: Database
) -> None:
    made = (await admin.post("/admin/v1/keys", json={"name": "n", "limits": {"tokens_per_day": 500}})).json()
    assert made["limits"]["tokens_per_day"] == 500
    limited = await admin.post(f"/admin/v1/keys/{made['id']}/limits", json={"requests_per_minute": 1})
    assert limited.json()["limits"] == {
        "requests_per_minute": 1,
        "tokens_per_minute": None,
        "concurrent_requests": None,
        "tokens_per_day": None,
    }
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    async with (
        public.router.lifespan_context(public),
        client_of(public, {"authorization": f"Bearer {made['key']}"}) as user,
    ):
        answers = [await user.post("/v1/chat/completions", json=chat) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]  # the change counted at once
    (used,) = (await admin.get("/admin/v1/usage?days=1")).json()["data"]
    usage = answers[0].json()["usage"]
    assert (used["account"], used["requests"]) == (made["id"], 1)
    assert used["prompt_tokens"] + used["completion_tokens"] == usage["total_tokens"]
    assert AuditLog(database).newest(10)[-1].record.action.startswith("key.")


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "status"), [({"tokens_per_day": 0}, 400), ({"per_week": 1}, 400), ({}, 404)])
async def test_wrong_limits_and_unknown_keys_are_refused(
    admin: httpx.AsyncClient, body: dict[str, int], status: int
) -> None:
    assert (await admin.post("/admin/v1/keys/aaaaaaaaaaaaaaaa/limits", json=body)).status_code == status
