"""The gate finds the route that Starlette's own router would take, and the route answers as FastAPI would."""

from __future__ import annotations

from unittest.mock import AsyncMock

import httpx
import pytest
from fastapi import APIRouter, Depends, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.access import DeclaredRoute, KeyRoute, RouteTable

ROUTES = [route for route in create_app(ToyLLM(), ServeConfig()).router.routes if isinstance(route, APIRoute)]
PATHS = st.one_of(
    st.sampled_from([route.path for route in ROUTES]),
    st.tuples(st.sampled_from([route.path for route in ROUTES]), st.text("/a\n{}.%:", max_size=4)).map("".join),
    st.text("/v1models{}\n", max_size=20),
)


def routed(scope: dict) -> tuple[APIRoute | None, dict]:
    """Ask every route, in order, as Starlette's router does."""
    matches = [(*route.matches(scope), route) for route in ROUTES]
    full = [(route, found) for match, found, route in matches if match is Match.FULL]
    partial = [(route, found) for match, found, route in matches if match is Match.PARTIAL]
    return (full or partial or [(None, {})])[0]


@given(PATHS, st.sampled_from(["GET", "POST", "HEAD", "DELETE", "OPTIONS"]), st.sampled_from(["", "/v1"]))
def test_sec_13_the_gate_takes_the_route_that_a_search_finds(path: str, method: str, root_path: str) -> None:
    scope = {"type": "http", "path": path, "method": method, "root_path": root_path}
    route, found = routed(scope)
    expected = {**scope, **found}
    assert RouteTable(ROUTES).find(scope) is route
    assert scope == expected


@pytest.mark.parametrize("path", ["/metrics", "/metrics\n"])
def test_sec_13_a_line_feed_at_the_end_does_not_change_what_a_route_takes(path: str) -> None:
    found = RouteTable(ROUTES).find({"type": "http", "path": path, "method": "GET"})
    assert found is not None
    assert found.path == "/metrics"


PLAIN = [route for route in ROUTES if isinstance(route, DeclaredRoute) and route.takes_request_alone]


def test_an_endpoint_that_reads_more_than_the_request_is_left_to_the_framework() -> None:
    paths = {route.path for route in PLAIN}
    assert "/v1/models" in paths
    assert not paths & {"/v1/models/{model_id:path}", "/v1/chat/completions", "/v1/files"}


@pytest.mark.anyio
async def test_sec_12_what_a_router_has_run_before_its_endpoints_is_run() -> None:
    def deny() -> None:
        raise PermissionError

    router = APIRouter(route_class=KeyRoute, dependencies=[Depends(deny)])

    @router.get("/secret")
    async def read_secret(request: Request) -> Response:
        return Response(request.url.path)

    scope = {"type": "http", "method": "GET", "path": "/secret", "headers": [], "query_string": b"", "state": {}}
    route = RouteTable(router.routes).find(scope)
    assert route is not None
    with pytest.raises(PermissionError):
        await route.handle(scope, AsyncMock(return_value={"type": "http.request", "body": b""}), AsyncMock())


@pytest.mark.anyio
async def test_sec_12_a_middleware_that_no_request_would_pass_keeps_the_server_from_starting() -> None:
    app = create_app(ToyLLM(), ServeConfig())
    app.add_middleware(GZipMiddleware)
    with pytest.raises(TypeError, match="gate"):
        await app({"type": "lifespan"}, AsyncMock(), AsyncMock())


@pytest.mark.anyio
@pytest.mark.parametrize("route", PLAIN, ids=lambda route: route.path)
async def test_an_endpoint_that_is_called_at_once_answers_as_through_the_framework(
    route: DeclaredRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(ToyLLM(), ServeConfig())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        at_once = await client.get(route.path)
        monkeypatch.setattr(DeclaredRoute, "takes_request_alone", False)
        through = await client.get(route.path)
    del at_once.headers["x-request-id"], through.headers["x-request-id"]
    assert at_once.status_code == through.status_code == 200
    assert at_once.headers.multi_items() == through.headers.multi_items()
    assert at_once.content == through.content
