"""What the gate lets in: the decision alone, the application behind it, and the promise that every route is covered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRouter
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError
from qwenstack.serving import ServeConfig, check_binding, create_app
from qwenstack.serving.access import BodyForm, KeyRoute, body_form_of, check_routes, declared_access
from qwenstack.serving.gate import GateRules, RequestHead
from qwenstack.serving.identity import STRANGER, Access, KeyRing, refuse_caller

KEY = "sk-a-long-test-key"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}


def head(method: str = "POST", scheme: str = "http", **headers: str) -> RequestHead:
    named = {"host": "127.0.0.1:8000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if method == "POST":
        named.setdefault("content-type", "application/json")
    return RequestHead(method=method, scheme=scheme, headers=named)


def status(
    rules: GateRules, request: RequestHead, access: Access = Access.INFERENCE, *, keys: Sequence[str] = ()
) -> int | None:
    refusal = rules.judge(request, access, KeyRing(keys).identify(request.api_key, now_ms=0))
    return None if refusal is None else refusal.status


LOCAL = GateRules(ServeConfig())


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:3000", "[::1]", "[::1]:8000", "127.0.0.2:1"],
)
def test_names_of_this_machine_are_let_in(host: str) -> None:
    assert status(LOCAL, head(host=host)) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "a/?x=",
        "localhost/",
        "localhost:80:80",
        "localhost:x",
        "localhost:²",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "user@localhost",
        "localhost\t",
        "[::1",
        "::1",
        "[::1]x",
        "192.168.1.5:8000",
        "0.0.0.0",
        "2130706433",
        "ｌocalhost",
    ],
)
def test_sec_13_other_names_are_refused(host: str) -> None:
    assert status(LOCAL, head(host=host)) == 403
    assert status(LOCAL, head("GET", host=host), Access.PUBLIC) == 403


def test_a_configured_name_is_let_in_and_an_open_server_takes_addresses() -> None:
    rules = GateRules(ServeConfig(host="0.0.0.0", api_keys=(KEY,), allowed_hosts=("chat.example",)))
    bearer = f"Bearer {KEY}"
    for host in ("chat.example", "Chat.Example:443", "192.168.1.5:8000", "[fe80::1]"):
        assert status(rules, head(host=host, authorization=bearer)) is None
    assert status(rules, head(host="rebound.example", authorization=bearer)) == 403


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"origin": "http://127.0.0.1:8000"}, None),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://localhost:8000"}, 403),
        ({"origin": "https://127.0.0.1:8000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "same-origin"}, None),
        ({"sec_fetch_site": "none"}, None),
        ({"origin": "https://chat.example", "sec_fetch_site": "cross-site"}, None),
        ({"origin": "https://chat.example.evil"}, 403),
    ],
)
def test_sec_20_pages_of_other_origins_are_refused(headers: dict[str, str], expected: int | None) -> None:
    rules = GateRules(ServeConfig(allowed_origins=("https://chat.example",)))
    assert status(rules, head(**headers)) == expected


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", None),
        ("Application/JSON; charset=UTF-8", None),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=utf-7", 415),
        ("application/jsonx", 415),
    ],
)
def test_sec_20_a_form_can_never_call_the_api(content_type: str, expected: int | None) -> None:
    assert status(LOCAL, head(content_type=content_type)) == expected


def test_sec_20_a_body_without_a_type_is_json_unless_a_browser_sends_it() -> None:
    assert status(LOCAL, head(content_type="")) is None
    for of_a_page in ({"origin": "http://127.0.0.1:8000"}, {"sec_fetch_site": "same-origin"}):
        assert status(LOCAL, head(content_type="", **of_a_page)) == 415


def test_sec_20_what_a_body_may_be_is_the_routes_own_word() -> None:
    form, json = FORM["content-type"], JSON["content-type"]

    def refusal(content_type: str, form: BodyForm, **headers: str) -> int | None:
        request = head(content_type=content_type, **headers)
        answer = LOCAL.judge(request, Access.INFERENCE, KeyRing().identify(None, now_ms=0), form)
        return None if answer is None else answer.status

    assert [refusal(kind, BodyForm.JSON) for kind in (form, json, "")] == [415, None, None]
    assert [refusal(kind, BodyForm.UPLOAD) for kind in (form, json, "", "multipart/form-data")] == [None, 415, 415, 415]
    assert [refusal(kind, BodyForm.NONE) for kind in (form, json, "", "text/plain")] == [415, None, None, 415]
    assert refusal(form, BodyForm.UPLOAD, origin="http://evil.example") == 403
    longest = ServeConfig().max_upload_bytes
    assert refusal(form, BodyForm.UPLOAD, content_length=str(longest)) is None
    assert refusal(form, BodyForm.UPLOAD, content_length=str(longest + 2**20)) == 413
    assert refusal(json, BodyForm.NONE, content_length=str(longest)) == 413


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity", ""])
def test_sec_23_compressed_bodies_are_refused(encoding: str) -> None:
    assert status(LOCAL, head(content_encoding=encoding)) == 415


@pytest.mark.parametrize("length", ["2097153", "9" * 5000, "-1", "+5", "1_000", "²", "x"])
def test_sec_22_an_announced_length_over_the_limit_is_refused(length: str) -> None:
    assert status(LOCAL, head(content_length=length)) == 413
    assert status(LOCAL, head(content_length="2097152")) is None


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"],
)
def test_sec_12_without_the_key_nothing_but_the_public_opens(authorization: str | None) -> None:
    keys = ("another-key", KEY)
    headers = {} if authorization is None else {"authorization": authorization}
    assert status(LOCAL, head(**headers), keys=keys) == 401
    assert status(LOCAL, head("GET", **headers), Access.PUBLIC, keys=keys) is None
    assert status(LOCAL, head(authorization=f"bearer  {KEY}"), keys=keys) is None


@given(presented=st.text(max_size=40), keys=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=4))
@settings(deadline=None)
def test_sec_15_a_ring_opens_for_its_own_keys_alone(presented: str, keys: list[str]) -> None:
    keys = [key.encode("utf-8", "ignore").decode() + "k" for key in keys]
    ring = KeyRing(keys)
    assert ring.identify(presented, now_ms=0).may(Access.INFERENCE) == (presented in keys)
    assert len({ring.identify(key, now_ms=0).tenant for key in keys}) == len(set(keys))
    assert ring.identify(None, now_ms=0) == STRANGER


def test_without_keys_everybody_is_the_nameless_tenant() -> None:
    for presented in (None, "whatever"):
        identity = KeyRing().identify(presented, now_ms=0)
        assert (identity.tenant, identity.may(Access.INFERENCE), identity.may(Access.METRICS)) == ("", True, True)


@pytest.mark.parametrize("name", ["host", "origin", "content-length", "authorization", "content-type"])
def test_sec_21_a_header_with_two_values_is_refused(name: str) -> None:
    raw = [(b"host", b"localhost"), (name.encode(), b"1"), (name.title().encode(), b"2")]
    request = RequestHead.from_scope({"method": "GET", "path": "/", "query_string": b"", "headers": raw})
    assert request.repeated == name
    assert status(LOCAL, request) == 400


def test_sec_12_an_open_server_without_a_key_does_not_start() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(ConfigError, match="API key"):
            check_binding(ServeConfig(host=host), KeyRing())
        with pytest.raises(ConfigError, match="API key"):
            create_app(ToyLLM(), ServeConfig(host=host))
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        check_binding(ServeConfig(host=host), KeyRing())
    check_binding(ServeConfig(host="0.0.0.0"), KeyRing([KEY]))


def test_sec_12_every_route_declares_who_may_call_it() -> None:
    app = create_app(ToyLLM(), ServeConfig())
    declared = {route.path: declared_access(route) for route in app.router.routes}  # type: ignore[attr-defined]
    public = {"/", "/livez", "/readyz", "/health"}
    assert {path for path, access in declared.items() if access is Access.PUBLIC} == public
    assert None not in declared.values()


def test_sec_12_a_route_without_a_declaration_keeps_the_server_from_starting() -> None:
    router = APIRouter()

    @router.get("/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(ConfigError, match="/forgotten"):
        check_routes(router.routes)


@pytest.fixture
async def locked() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ToyLLM(), ServeConfig(api_keys=(KEY,)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        yield client


@pytest.mark.anyio
async def test_sec_12_the_census_of_routes_with_and_without_a_key(locked: httpx.AsyncClient) -> None:
    app: FastAPI = create_app(ToyLLM(), ServeConfig())
    for route in app.router.routes:
        (method,) = route.methods - {"HEAD"}  # type: ignore[attr-defined]
        path = route.path.replace("{model_id:path}", "toy/echo")  # type: ignore[attr-defined]
        headers = FORM if body_form_of(route) is BodyForm.UPLOAD else JSON
        stranger = await locked.request(method, path, headers=headers, content=b"{}")
        owner = await locked.request(method, path, headers=headers | {"Authorization": f"Bearer {KEY}"}, content=b"{}")
        if isinstance(route, KeyRoute):
            assert stranger.status_code == 401, path
            assert stranger.headers["www-authenticate"] == "Bearer"
            assert owner.status_code in {200, 400}, path
        else:
            assert stranger.status_code == owner.status_code == 200, path


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/nothing", "/v1", "/docs", "/redoc", "//v1/models", "/v1/models/", "/livez/"])
async def test_sec_12_strangers_do_not_learn_what_exists(locked: httpx.AsyncClient, path: str) -> None:
    assert (await locked.get(path)).status_code == 401


@pytest.mark.anyio
async def test_unknown_routes_and_methods_have_openais_error_body(client: httpx.AsyncClient) -> None:
    missing = await client.get("/v2/chat")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert (await client.delete("/livez")).status_code == 405


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("POST", "/api/pull", 404),
        ("GET", "/api/chat", 405),
        ("DELETE", "/api/tags", 405),
    ],
)
async def test_addresses_below_ollamas_have_its_error_body(
    client: httpx.AsyncClient, locked: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    for asking, expected in ((client, status), (locked, 401)):
        answer = await asking.request(method, path, json={})
        assert answer.status_code == expected
        assert list(answer.json()) == ["error"]
        assert isinstance(answer.json()["error"], str)
        assert "request-id" not in answer.headers


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/messages/batches", 404),
        ("POST", "/v1/messages/nothing/", 404),
        ("GET", "/v1/messages", 405),
        ("GET", "/v1/messages/count_tokens", 405),
    ],
)
async def test_addresses_below_anthropics_have_its_error_body_and_header(
    client: httpx.AsyncClient, locked: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    for asking, expected in ((client, status), (locked, 401)):
        answer = await asking.request(method, path, json={})
        assert answer.status_code == expected
        body, request_id = answer.json(), answer.headers["x-request-id"]
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
        assert body["request_id"] == answer.headers["request-id"] == request_id


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/api", "/apis/x", "/v1/messagesx", "/v1/api/x", "/v1/models"])
async def test_other_addresses_are_openais(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={})
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "request-id" not in answer.headers


@pytest.mark.anyio
async def test_every_answer_carries_the_security_headers(client: httpx.AsyncClient) -> None:
    answers = [
        await client.get("/"),
        await client.get("/livez"),
        await client.get("/nothing"),
        await client.get("/livez", headers={"Host": "evil.example"}),
        await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "stream": True}
        ),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert len(answer.headers["x-request-id"]) == 32
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["cache-control"]


@pytest.mark.anyio
async def test_sec_20_only_a_configured_origin_gets_the_headers_of_cors() -> None:
    app = create_app(ToyLLM(), ServeConfig(allowed_origins=("https://chat.example",), api_keys=(KEY,)))
    asking = {"Access-Control-Request-Method": "POST"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        allowed = await client.options("/v1/models", headers=asking | {"Origin": "https://chat.example"})
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
        assert "access-control-allow-credentials" not in allowed.headers
        foreign = await client.options("/v1/models", headers=asking | {"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers
        read = await client.get("/v1/models", headers={"Origin": "https://chat.example"})
        assert read.status_code == 401
        assert read.headers["vary"] == "Origin"


@pytest.mark.anyio
async def test_sec_22_a_body_that_was_not_announced_is_cut_at_the_limit() -> None:
    app = create_app(ToyLLM(), ServeConfig(max_body_bytes=1000))
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 100
            yield b" " * 100

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        response = await client.post("/v1/completions", content=body(), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert "1000" in response.json()["error"]["message"]
    assert taken <= 1200


@pytest.mark.anyio
async def test_sec_22_a_body_that_never_ends_is_cut_in_time() -> None:
    app = create_app(ToyLLM(), ServeConfig(body_timeout_s=0.1))

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.03)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        response = await client.post("/v1/completions", content=body(), headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "body_timeout")


@pytest.mark.anyio
async def test_sec_22_bodies_that_were_held_back_and_end_together_are_read_one_in_a_turn_of_the_loop() -> None:
    app = create_app(ToyLLM(), ServeConfig())
    may_end, turn, answered_in = asyncio.Event(), 0, list[int]()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]

    async def receive() -> dict[str, object]:
        await may_end.wait()
        return {"type": "http.request", "body": b"{"}  # is refused as soon as it is read

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            answered_in.append(turn)

    async def ask() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await app(scope, receive, send)

    asking = asyncio.gather(*(ask() for _ in range(12)))
    await asyncio.sleep(0.05)
    may_end.set()
    while not asking.done():
        await asyncio.sleep(0)
        turn += 1
    assert len(set(answered_in)) == 12


@pytest.mark.anyio
async def test_websockets_are_closed() -> None:
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/v1/models", "headers": [], "query_string": b""}
    await create_app(ToyLLM(), ServeConfig())(scope, receive, send)
    assert sent == ["websocket.close"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/files/a%00", "/v1/files?after=%00", "/v1/responses/%00b", "/v1/models/%00"])
async def test_sec_14_an_address_with_a_nul_is_refused_before_a_database_sees_it(
    locked: httpx.AsyncClient, path: str
) -> None:
    assert (await locked.get(path)).status_code == 401
    answer = await locked.get(path, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    assert "%00" in answer.json()["error"]["message"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "hello", "previous_response_id": "resp_\0"}),
        ("/v1/batches", {"input_file_id": "\0", "endpoint": "/v1/completions", "completion_window": "24h"}),
    ],
)
async def test_sec_14_an_id_with_a_nul_is_refused_before_a_database_sees_it(
    locked: httpx.AsyncClient, path: str, body: dict[str, str]
) -> None:
    answer = await locked.post(path, json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in body


@pytest.mark.parametrize(
    ("access", "whence"), [(Access.INFERENCE, "qwenstack keys create"), (Access.ADMIN, "admin.key")]
)
def test_who_has_no_valid_key_is_told_whence_one_comes(access: Access, whence: str) -> None:
    refusal = refuse_caller(STRANGER, access)
    assert refusal is not None
    assert "wrong, expired or revoked" in str(refusal)
    assert whence in str(refusal)
