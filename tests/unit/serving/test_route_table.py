"""The gate finds the route that Starlette's own router would take, and the route answers as FastAPI would."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated
from unittest.mock import AsyncMock

import httpx
import msgspec
import pytest
from fastapi import APIRouter, Depends, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
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


PLAIN = [route for route in ROUTES if isinstance(route, DeclaredRoute) and route.is_plain]
BODIES = [
    None,
    [],
    {},
    {"model": 1},
    {"model": "default", "unknown": 1},
    {"model": "default", "prompt": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4},
    {"model": "default", "prompt": "a", "max_tokens": 4},
    {"model": "default", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4},
    {"model": "default", "messages": [{"role": "user", "content": "a"}], "stream": False},
    {"model": "default", "prompt": "a", "stream": False},
    {"model": "default", "input": "a", "prompt": 1, "messages": "a"},
    {"tokens": [1, 2]},
    {"input_prefix": "a", "input_suffix": "b"},
    {"messages": [{"role": "user", "content": "a"}]},
    {"prompt": "a"},
]


def test_an_endpoint_that_reads_more_than_request_and_body_is_left_to_the_framework() -> None:
    paths = {route.path for route in PLAIN}
    assert {"/v1/models", "/v1/chat/completions", "/readyz"} <= paths
    assert not paths & {"/v1/models/{model_id:path}", "/v1/files", "/v1/responses/{response_id}/cancel"}


class Measures(BaseModel):
    values: list[int]


def refuse() -> str:
    raise PermissionError


async def search(body: str) -> Response:
    return Response(body)


async def measure(body: list[int]) -> Response:
    return Response(str(len(body)))


async def keep(body: Measures = Depends(refuse)) -> Response:  # noqa: B008 - as FastAPI has it
    return Response(str(body.values))


async def tell(request: Annotated[str, Depends(refuse)]) -> Response:
    return Response(request)


def wait(request: Request) -> Response:
    return Response(request.url.path)


@pytest.mark.parametrize(
    ("method", "endpoint"), [("GET", search), ("POST", measure), ("POST", keep), ("GET", tell), ("GET", wait)]
)
def test_sec_12_what_is_no_request_and_no_model_is_left_to_the_framework(method: str, endpoint: Callable) -> None:
    assert not KeyRoute("/x", endpoint, methods=[method]).is_plain


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
async def test_endpoints_that_are_called_at_once_answer_as_through_the_framework(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = await _ask_all()
    monkeypatch.setattr(DeclaredRoute, "is_plain", False)
    through = await _ask_all()
    assert at_once == through
    assert 415 not in {status for answers in at_once.values() for status, *_ in answers}


async def _ask_all() -> dict[str, list[tuple[int, list[tuple[str, str]], str]]]:
    """Ask each endpoint all that a stranger might; a new server, so that its counters are the same."""
    transport = httpx.ASGITransport(create_app(ToyLLM(), ServeConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return {route.path: [_told(await _ask(client, route, body)) for body in _bodies(route)] for route in PLAIN}


def _bodies(route: DeclaredRoute) -> list[object]:
    return BODIES if route.body_model is not None else [None]


async def _ask(client: httpx.AsyncClient, route: DeclaredRoute, body: object) -> httpx.Response:
    method = min(route.methods or ())
    content = msgspec.json.encode(body) if method == "POST" else None
    return await client.request(method, route.path, content=content, headers={"content-type": "application/json"})


def _told(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], str]:
    """Return what is the same whenever it is asked: no ids, and no times."""
    varying = {"x-request-id", "request-id", "content-length"}
    headers = [(name, value) for name, value in answer.headers.multi_items() if name not in varying]
    return (
        answer.status_code,
        headers,
        re.sub(r"[0-9a-f]{24,}|\d[\d.:TZ+-]{5,}|_seconds\S* \S+|_duration\W+\d+", "*", answer.text),
    )
