"""The gate finds the route that the router will take: else it would ask for the wrong key."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.access import RouteTable

ROUTES = [route for route in create_app(ToyLLM(), ServeConfig()).router.routes if isinstance(route, APIRoute)]
PATHS = st.one_of(
    st.sampled_from([route.path for route in ROUTES]),
    st.tuples(st.sampled_from([route.path for route in ROUTES]), st.text("/a\n{}.%:", max_size=4)).map("".join),
    st.text("/v1models{}\n", max_size=20),
)


def routed(scope: dict) -> APIRoute | None:
    """Ask every route, in order, as Starlette's router does."""
    matches = [(route.matches(scope)[0], route) for route in ROUTES]
    full = [route for match, route in matches if match is Match.FULL]
    partial = [route for match, route in matches if match is Match.PARTIAL]
    return (full or partial or [None])[0]


@given(PATHS, st.sampled_from(["GET", "POST", "HEAD", "DELETE", "OPTIONS"]), st.sampled_from(["", "/v1"]))
def test_sec_13_the_gate_and_the_router_mean_the_same_route(path: str, method: str, root_path: str) -> None:
    scope = {"type": "http", "path": path, "method": method, "root_path": root_path}
    assert RouteTable(ROUTES).match(scope) is routed(scope)


@pytest.mark.parametrize("path", ["/metrics", "/metrics\n"])
def test_sec_13_a_line_feed_at_the_end_does_not_change_what_a_route_takes(path: str) -> None:
    found = RouteTable(ROUTES).match({"type": "http", "path": path, "method": "GET"})
    assert found is not None
    assert found.path == "/metrics"
