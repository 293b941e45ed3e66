"""What every endpoint is given, and what it answers with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.params import Security
from fastapi.routing import APIRouter
from fastapi.security import HTTPBearer

from qwenstack.serving.access import KeyRoute
from qwenstack.serving.connection import EventStream, Lifetime, run_while_connected
from qwenstack.serving.embedding_service import EmbeddingService
from qwenstack.serving.failure_log import log_failure
from qwenstack.serving.identity import Identity
from qwenstack.serving.service import GenerationService
from qwenstack.serving.wire.errors import ErrorAnswer, ErrorBody, answer_error, write_openai_error
from qwenstack.serving.wire.sse import PING, encode_event

Result = TypeVar("Result")
Responses = dict[int | str, dict[str, Any]]  # pyright: ignore[reportExplicitAny]: FastAPI's own type


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamForm:
    """How a wire's stream looks."""

    media_type: str
    ping: bytes
    """What keeps a silent stream alive and no client reads; empty where the wire has nothing like it."""
    write_error: Callable[[ErrorAnswer], bytes]
    """Makes the event that ends a stream in the place of what should have come."""


OPENAI_STREAM = StreamForm(
    media_type="text/event-stream", ping=PING, write_error=lambda answer: encode_event(write_openai_error(answer))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The parts of a running server that endpoints use."""

    service: GenerationService
    embeddings: EmbeddingService
    lifetime: Lifetime
    ping_interval_s: float

    async def run(self, request: Request, work: Coroutine[object, object, Result]) -> Result:
        """Run a request's work; it is cancelled when the client leaves."""
        return await run_while_connected(work, request.receive, self.lifetime)

    def stream(self, request: Request, events: AsyncGenerator[bytes], form: StreamForm = OPENAI_STREAM) -> EventStream:
        """Answer with events as they come."""
        request_id = request_id_of(request)

        def describe_error(error: Exception) -> bytes:
            answer = answer_error(error, request_id=request_id)
            if answer.is_our_fault:
                log_failure(error, request_id)
            return form.write_error(answer)

        return EventStream(
            events,
            lifetime=self.lifetime,
            describe_error=describe_error,
            media_type=form.media_type,
            ping=form.ping,
            ping_interval_s=self.ping_interval_s,
        )


def key_router(route_class: type[KeyRoute] = KeyRoute, error_body: type = ErrorBody) -> APIRouter:
    """Make a router whose routes need a key and document it."""
    scheme = HTTPBearer(auto_error=False, description="An API key; any where none is configured.")
    # Naming 4XX keeps the framework from promising its own 422, which never comes.
    refused: Responses = {"4XX": {"model": error_body, "description": "The request is refused."}}
    responses = error_responses(401, 403, 429, body=error_body) | refused
    return APIRouter(route_class=route_class, dependencies=[Security(scheme)], responses=responses)


def error_responses(*statuses: int, body: type = ErrorBody) -> Responses:
    """Document answers that are errors."""
    texts: Mapping[int, str] = {
        400: "The request is wrong; the message names the field.",
        401: "No API key, or a wrong one.",
        403: "The host or the page's origin is not allowed.",
        404: "There is no such model.",
        409: "It does not fit what is there.",
        413: "The body is too long.",
        415: "The body is not plain JSON.",
        429: "A limit of this API key is reached; `Retry-After` says when to try again.",
        500: "The model failed; the message has the request id.",
        503: "There is no room; `Retry-After` says when to try again.",
    }
    return {status: {"model": body, "description": texts[status]} for status in statuses}


def generation_responses(stream: str, *, media_type: str = "text/event-stream", body: type = ErrorBody) -> Responses:
    """Document the answers of an endpoint that generates; `stream` says what comes where one is asked for."""
    # OpenAPI 3.1 has no words for the items of a stream: what they are is told, and no type is claimed for them.
    events = {"description": stream}
    streamed: Responses = {200: {"content": {media_type: {"schema": events}}}}
    return streamed | error_responses(400, 404, 413, 415, 429, 500, 503, body=body)


def json_response(payload: object, *, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(payload), status_code=status, media_type="application/json")


def identity_of(request: Request) -> Identity:
    """Return who is calling, as the gate found out."""
    identity: Identity = request.state.identity
    return identity


def request_id_of(request: Request) -> str:
    """Return the id that the gate gave this request."""
    request_id: str = request.state.request_id
    return request_id
