"""Who may call a route: every route says so by its class, and one that does not keeps the server from starting."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from enum import Enum
from typing import ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from qwenstack.core.errors import ConfigError
from qwenstack.serving.strict_json import parse_json
from qwenstack.serving.wire.errors import WriteError, write_openai_error


class Access(Enum):
    """Who may call a route."""

    PUBLIC = "public"
    """Anyone who reaches the port."""
    KEY = "key"
    """Holders of an API key; anyone where none is configured."""


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

    access: ClassVar[Access] = Access.KEY
    write_error: ClassVar[WriteError] = staticmethod(write_openai_error)
    """How the clients of this route expect to be told of an error."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """Put the strict request in place of the framework's."""
        handle: Callable[[Request], Awaitable[Response]] = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            if request.method == "POST":
                strict.document = parse_json(await strict.body())
            return await handle(strict)

        return handle_strictly


def declared_access(route: BaseRoute) -> Access | None:
    """Return what a route declares, None where it declares nothing."""
    return route.access if isinstance(route, PublicRoute | KeyRoute) else None


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


def match_route(routes: Iterable[BaseRoute], scope: Scope) -> APIRoute | None:
    """Find the route that will answer, by the router's own rule: the first full match, else the first partial."""
    partial: APIRoute | None = None
    for route in routes:
        if not isinstance(route, APIRoute):
            continue
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return route
        if match is Match.PARTIAL and partial is None:
            partial = route
    return partial


class KeyRing:
    """The API keys that open the server, kept as digests and compared in constant time."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Keep the digests alone."""
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def tenant(self, presented: str | None) -> str | None:
        """Return the name of whoever holds a presented key, which tells nothing of the key; None for a wrong one.

        Where no keys are configured, everybody is the same tenant, the nameless one.
        """
        if not self._digests:
            return ""
        # A missing key is compared as well, and no match ends the loop: the time tells nothing.
        digest = hashlib.sha256((presented or "").encode("utf-8", "surrogatepass")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest[:8].hex() if any(matches) and presented is not None else None
