"""What it takes to call a route. Every route says so by its class; one that does not keeps the server from starting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from enum import Enum, auto
from typing import ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from qwenstack.core.errors import ConfigError
from qwenstack.serving.identity import Access
from qwenstack.serving.strict_json import parse_json
from qwenstack.serving.wire.errors import WriteError, write_openai_error

BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
"""Methods whose requests have a body, which must be JSON."""


class BodyForm(Enum):
    """What the body of a POST has to be."""

    JSON = auto()
    NONE = auto()
    """Nothing: the address says it all."""
    UPLOAD = auto()
    """A form with a file, which is read as it comes."""


class StrictRequest(Request):
    """A request whose JSON body was read by the strict reader, before the framework looks at it."""

    document: object = None

    async def json(self) -> object:
        """Return the document."""
        return self.document


class PublicRoute(APIRoute):
    """A route for everyone."""

    access: ClassVar[Access] = Access.PUBLIC


class KeyRoute(APIRoute):
    """A route for holders of an API key, reading bodies with the strict JSON reader."""

    access: ClassVar[Access] = Access.INFERENCE
    body: ClassVar[BodyForm] = BodyForm.JSON
    write_error: ClassVar[WriteError] = staticmethod(write_openai_error)
    """How the clients of this route expect to be told of an error."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """Put the strict request in place of the framework's."""
        handle: Callable[[Request], Awaitable[Response]] = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            if request.method in BODY_METHODS and self.body is BodyForm.JSON:
                strict.document = parse_json(await strict.body())
            return await handle(strict)

        return handle_strictly


class AdminRoute(KeyRoute):
    """A route for administrators; the application that the world sees has none."""

    access: ClassVar[Access] = Access.ADMIN


class MetricsRoute(KeyRoute):
    """A route for whoever watches the server."""

    access: ClassVar[Access] = Access.METRICS


class UploadRoute(KeyRoute):
    """A route that takes a file."""

    body: ClassVar[BodyForm] = BodyForm.UPLOAD


class ActionRoute(KeyRoute):
    """A route that does something to what its address names."""

    body: ClassVar[BodyForm] = BodyForm.NONE


def declared_access(route: BaseRoute) -> Access | None:
    """Return what a route declares, None where it declares nothing."""
    return route.access if isinstance(route, PublicRoute | KeyRoute) else None


def body_form_of(route: BaseRoute | None) -> BodyForm:
    """Return what a route reads; JSON where there is no route."""
    return type(route).body if isinstance(route, KeyRoute) else BodyForm.JSON


def error_writer_of(route: BaseRoute | None) -> WriteError:
    """Return how a route's clients expect to be told of an error; OpenAI's way where there is no route."""
    return type(route).write_error if isinstance(route, KeyRoute) else write_openai_error


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Refuse routes that do not say who may call them.

    Raises:
        ConfigError: a route has no declared access.
    """
    for route in routes:
        if declared_access(route) is None:
            name: object = getattr(route, "path", route)
            raise ConfigError(f"Route {name!r} does not declare its access; make it a PublicRoute or KeyRoute.")


class RouteTable:
    """Finds the route that will answer, without asking every route at every request."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        """Find out beforehand which routes match the addresses that are written out, in their order."""
        self._all = tuple(route for route in routes if isinstance(route, APIRoute))
        fixed = {route.path for route in self._all if "{" not in route.path}
        # To an address that is written out, routes with parameters can belong, too.
        self._at = {path: tuple(route for route in self._all if route.path_regex.match(path)) for path in fixed}

    def match(self, scope: Scope) -> APIRoute | None:
        """Return the route by the router's own rule: the first full match, else the first partial."""
        partial: APIRoute | None = None
        for route in self._candidates(scope):
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return route
            if match is Match.PARTIAL and partial is None:
                partial = route
        return partial

    def allowed_methods(self, scope: Scope) -> list[str]:
        """Return the methods that an address takes, by whichever routes it has."""
        here = (route for route in self._candidates(scope) if route.matches(scope)[0] is not Match.NONE)
        return sorted({method for route in here for method in route.methods or ()})

    def _candidates(self, scope: Scope) -> Iterable[APIRoute]:
        # Others may match in ways of their own (a line feed at the end, say): every route is asked, as the router does.
        return self._at.get(scope["path"], self._all) if not scope.get("root_path") else self._all
