"""What it takes to call a route. Every route says so by its class; one that does not keeps the server from starting."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from enum import Enum, auto
from functools import cached_property
from typing import ClassVar

from fastapi import Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from qwenstack.core.errors import ConfigError
from qwenstack.serving.identity import Access
from qwenstack.serving.strict_json import parse_json
from qwenstack.serving.wire.anthropic import write_anthropic_error
from qwenstack.serving.wire.errors import WriteError, write_openai_error
from qwenstack.serving.wire.ollama import write_ollama_error
from qwenstack.serving.wire.validation import read_body

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


class DeclaredRoute(APIRoute):
    """A route that says who may call it, and runs its endpoint."""

    access: ClassVar[Access]

    @cached_property
    def is_plain(self) -> bool:
        """Whether the endpoint takes the request, its JSON body as a model, or both, and nothing runs before it."""
        parameters = self._parameters
        takes_body = not BODY_METHODS.isdisjoint(self.methods or ())
        depends = any(not _is_documentation(each.dependency) for each in self.dependencies)
        return (
            inspect.iscoroutinefunction(self.endpoint)
            and parameters.keys() <= {"request", "body"}
            and ("request" not in parameters or parameters["request"].annotation is Request)
            and ("body" in parameters) == (self.body_model is not None) == takes_body
            and all(each.default is inspect.Parameter.empty for each in parameters.values())
            and not depends
        )

    @cached_property
    def body_model(self) -> type[BaseModel] | None:
        """What the endpoint takes as `body`; None where that is no model."""
        kind: object = self._parameters["body"].annotation if "body" in self._parameters else None
        return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that this route matched."""
        if self.is_plain:
            # To look for parameters of all kinds takes the framework longer than most of these endpoints.
            response = await self._call_endpoint(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await AsyncExitStackMiddleware(super().handle)(scope, receive, send)

    async def _call_endpoint(self, request: Request) -> Response:
        arguments: dict[str, object] = {"request": request} if "request" in self._parameters else {}
        if self.body_model is not None:
            arguments["body"] = read_body(self.body_model, parse_json(await request.body()))
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint
        return await endpoint(**arguments)

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.endpoint, eval_str=True).parameters


def _is_documentation(dependency: object) -> bool:
    """Whether a dependency says how callers are known, and refuses nobody: the gate does."""
    return isinstance(dependency, HTTPBearer) and not dependency.auto_error


class PublicRoute(DeclaredRoute):
    """A route for everyone."""

    access: ClassVar[Access] = Access.PUBLIC


class KeyRoute(DeclaredRoute):
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
    return route.access if isinstance(route, DeclaredRoute) else None


def body_form_of(route: BaseRoute | None) -> BodyForm:
    """Return what a route reads; JSON where there is no route."""
    return type(route).body if isinstance(route, KeyRoute) else BodyForm.JSON


def is_anthropics(path: str) -> bool:
    """Whether an address belongs to Anthropic's wire, with or without a route."""
    return f"{path}/".startswith("/v1/messages/")


def error_writer_of(route: BaseRoute | None, path: str) -> WriteError:
    """Return how clients expect to be told of an error: the route's; where there is none, those of such addresses."""
    if isinstance(route, KeyRoute):
        return type(route).write_error
    if is_anthropics(path):
        return write_anthropic_error
    return write_ollama_error if path.startswith("/api/") else write_openai_error


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Refuse routes that do not say who may call them.

    Raises:
        ConfigError: a route has no declared access.
    """
    for route in routes:
        if declared_access(route) is None:
            name: object = getattr(route, "path", route)
            raise ConfigError(f"Route {name!r} does not declare its access; make it a PublicRoute or KeyRoute.")
        if isinstance(route, DeclaredRoute):
            _ = route.is_plain  # found out now: what an endpoint's annotations name has to be there


class RouteTable:
    """Finds the route that answers, without asking every route at every request."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        """Find out beforehand which routes match the addresses that are written out, in their order."""
        self._all = tuple(route for route in routes if isinstance(route, DeclaredRoute))
        fixed = {route.path for route in self._all if "{" not in route.path}
        # To an address that is written out, routes with parameters can belong, too.
        self._at = {path: tuple(route for route in self._all if route.path_regex.match(path)) for path in fixed}

    def find(self, scope: Scope) -> DeclaredRoute | None:
        """Return the first full match, else the first route whose method alone is another, else None.

        What the route reads from the address is in the scope then.
        """
        partial: tuple[DeclaredRoute, Scope] | None = None
        for route in self._candidates(scope):
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route
            if match is Match.PARTIAL and partial is None:
                partial = route, found
        if partial is None:
            return None
        scope.update(partial[1])
        return partial[0]

    def allowed_methods(self, scope: Scope) -> list[str]:
        """Return the methods that an address takes, by whichever routes it has."""
        here = (route for route in self._candidates(scope) if route.matches(scope)[0] is not Match.NONE)
        return sorted({method for route in here for method in route.methods or ()})

    def _candidates(self, scope: Scope) -> Iterable[DeclaredRoute]:
        # Others may match in ways of their own (a line feed at the end, say): every route is asked then.
        return self._at.get(scope["path"], self._all) if not scope.get("root_path") else self._all
