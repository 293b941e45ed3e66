"""The gate before the endpoints: what may come in at all, which of them answers, and what every answer carries.

`judge` decides from the request's head alone and does nothing; `Gate` is the thin ASGI shell that acts on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from starlette.routing import BaseRoute
from starlette.types import Message, Receive, Scope, Send

from qwenstack.core.loop_turns import LoopTurns
from qwenstack.logs import RequestContext, request_context
from qwenstack.serving.access import (
    BODY_METHODS,
    BodyForm,
    RouteTable,
    body_form_of,
    declared_access,
    error_writer_of,
    is_anthropics,
)
from qwenstack.serving.address import is_loopback_host, parse_address
from qwenstack.serving.audit import RequestAudit
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.errors import HttpError
from qwenstack.serving.failure_log import log_failure
from qwenstack.serving.identity import Access, Callers, Identity, refuse_caller
from qwenstack.serving.limiter import Limiter
from qwenstack.serving.metrics import Metrics
from qwenstack.serving.request_log import Outcome, client_label, known_method
from qwenstack.serving.request_notes import RequestNotes
from qwenstack.serving.traces import NO_TRACES, Arrival, RequestSpan, Traces
from qwenstack.serving.wire.errors import CLIENT_GONE_STATUS, ErrorAnswer, WriteError, answer_error

_API_CSP = "default-src 'none'; frame-ancestors 'none'"
_SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_DEFAULT_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _API_CSP.encode()),
    (b"cache-control", b"no-store"),
)
"""Added where the answer does not bring its own."""
_ID_NAMES = (b"x-request-id",)
_ANTHROPIC_ID_NAMES = (*_ID_NAMES, b"request-id")
"""Anthropic's clients look for the second."""
_NOTHING_HERE = "There is nothing at this address; the endpoints are in /openapi.json."
_SINGLE_HEADERS = frozenset(
    {
        "host",
        "origin",
        "authorization",
        "x-api-key",
        "content-type",
        "content-encoding",
        "content-length",
        "sec-fetch-site",
        "access-control-request-method",
    }
)
"""Headers that may come once: of two values, two readers could believe different ones."""
_PARENTS = frozenset({"traceparent", "tracestate"})
_LABELS = frozenset({"x-request-id", *_PARENTS})
"""Headers that decide nothing; of several, the last."""


FORM_OVERHEAD_BYTES = 64 * 1024
"""What a form has around its file: eight parts with headers and fields, twice over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """What the gate looks at."""

    method: str
    scheme: str
    headers: Mapping[str, str]
    """Lower-case names; those of interest alone."""
    repeated: str | None = None
    """A header that came twice and may not."""
    has_nul: bool = False
    """Whether the address holds the sign that no text of a database may hold."""

    @classmethod
    def from_scope(cls, scope: Scope) -> RequestHead:
        """Read the head of an ASGI request."""
        headers: dict[str, str] = {}
        repeated: str | None = None
        pairs: Iterable[tuple[bytes, bytes]] = scope["headers"]
        for raw_name, raw_value in pairs:
            name = raw_name.decode("latin-1").lower()
            if name in _SINGLE_HEADERS or name in _LABELS:
                repeated = name if name in headers and name not in _LABELS else repeated
                headers[name] = raw_value.decode("latin-1").strip()
        return cls(
            method=scope["method"],
            scheme=scope.get("scheme", "http"),
            headers=headers,
            repeated=repeated,
            has_nul="\0" in scope["path"] or b"%00" in scope["query_string"],
        )

    @property
    def api_key(self) -> str | None:
        """The key in `Authorization: Bearer KEY`; where there is none, in `X-Api-Key`, as Anthropic's do."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else self.headers.get("x-api-key")

    @property
    def is_of_a_page(self) -> bool:
        """Whether a browser sent it, for whichever page: with anything but GET one says of which."""
        return "origin" in self.headers or "sec-fetch-site" in self.headers

    def is_preflight(self) -> bool:
        """Whether a browser asks what a page of another origin may do."""
        return self.method == "OPTIONS" and "origin" in self.headers and "access-control-request-method" in self.headers


class GateRules:
    """What the configuration lets in."""

    def __init__(self, config: ServeConfig) -> None:
        """Work out the names once."""
        self._hosts = {host.lower() for host in (*config.allowed_hosts, config.host)}
        # A page can point its own name at this machine (DNS rebinding), but no name can be an address: once the server
        # is open to the network and so to key holders alone, every literal address is as good as another.
        self._takes_any_address = not config.is_loopback
        self._origins = frozenset(origin.lower() for origin in config.allowed_origins)
        self._limits = body_limits(config)
        # The same few names come with every request; to read an address takes longer than all the rest of a judgement.
        self._knows_host = lru_cache(maxsize=64)(self._is_name_of_ours)

    def judge(
        self, head: RequestHead, access: Access, identity: Identity, form: BodyForm | None = BodyForm.JSON
    ) -> HttpError | None:
        """Decide whether a request may go on; None lets it through. Without a `form` any body will do."""
        if head.repeated is not None:
            return HttpError(400, f"The header `{head.repeated}` came more than once.", code="repeated_header")
        refusal = self._judge_place(head, access)
        if refusal is not None:
            return refusal
        return refuse_caller(identity, access) or _judge_address(head) or self._judge_body(head, form)

    def allows_origin(self, origin: str) -> bool:
        """Tell whether the configuration names a foreign origin."""
        return origin.lower() in self._origins

    def _judge_place(self, head: RequestHead, access: Access) -> HttpError | None:
        """Keep out names that are not ours and pages of other origins."""
        host = head.headers.get("host", "")
        if not self._knows_host(host):
            text = f"Host {host[:100]!r} is not a name of this server. Add it to `allowed_hosts` if it should be."
            return HttpError(403, text, code="host_not_allowed")
        origin = head.headers.get("origin")
        if origin is not None:
            if origin.lower() == f"{head.scheme}://{host.lower()}" or self.allows_origin(origin):
                return None
            text = f"Pages of {origin[:100]!r} may not use this server. Add it to `allowed_origins` if they should."
            return HttpError(403, text, code="origin_not_allowed")
        if access is not Access.PUBLIC and head.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return HttpError(403, "Pages of other sites may not use this API.", code="origin_not_allowed")
        return None

    def _is_name_of_ours(self, host: str) -> bool:
        name = _strip_port(host)
        if name is None:
            return False
        if is_loopback_host(name) or name.lower() in self._hosts:
            return True
        return self._takes_any_address and parse_address(name) is not None

    def _judge_body(self, head: RequestHead, form: BodyForm | None) -> HttpError | None:
        if "content-encoding" in head.headers:
            return HttpError(
                415, "Compressed request bodies are not read; send plain JSON.", code="unsupported_encoding"
            )
        kind = head.headers.get("content-type", "")
        if kind == "" and form is BodyForm.JSON and not head.is_of_a_page:
            kind = _JSON  # as some clients of Ollama's leave it out
        if head.method in BODY_METHODS and form is not None and not _suits(kind, form):
            text = f"Content type {kind[:100]!r} is not read here; send {_WANTED[form]}."
            return HttpError(415, text, code="unsupported_media_type")
        length, most = head.headers.get("content-length", "0"), self._limits[form or BodyForm.JSON].max_bytes
        if not (length.isascii() and length.isdigit()) or len(length) > 18 or int(length) > most:
            return body_too_large(most)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimit:
    """How much a client may send, and for how long."""

    max_bytes: int
    timeout_s: float


def body_limits(config: ServeConfig) -> Mapping[BodyForm, BodyLimit]:
    """Return the limits of each form of body."""
    plain = BodyLimit(max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    upload = BodyLimit(max_bytes=config.max_upload_bytes + FORM_OVERHEAD_BYTES, timeout_s=config.upload_timeout_s)
    return {BodyForm.JSON: plain, BodyForm.NONE: plain, BodyForm.UPLOAD: upload}


def _judge_address(head: RequestHead) -> HttpError | None:
    """Refuse what PostgreSQL would: an id with it would be an error of ours there, and be nobody's on SQLite."""
    if head.has_nul:
        return HttpError(
            400, "The address holds a NUL (`%00`); nothing here has one in its name.", code="invalid_value"
        )
    return None


def body_too_large(limit_bytes: int) -> HttpError:
    """Say how long a body may be."""
    return HttpError(
        413,
        f"The body is longer than {limit_bytes} bytes. Send less.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def method_not_allowed(methods: Sequence[str]) -> HttpError:
    """Say which methods an address takes: those of all its routes, where the router knows of one."""
    return HttpError(
        405,
        "This address does not take this method; the `Allow` header names those it takes.",
        code="method_not_allowed",
        headers={"Allow": ", ".join(methods)},
    )


def _strip_port(host: str) -> str | None:
    """Return the name in a `Host` header; None where it is anything but NAME, NAME:PORT, [IPv6] or [IPv6]:PORT."""
    if host.startswith("["):
        name, bracket, rest = host.partition("]")
        if not bracket:
            return None
        name += bracket
    else:
        name, colon, digits = host.partition(":")
        rest = colon + digits
    port = rest.removeprefix(":")
    if rest and not (rest.startswith(":") and port.isascii() and port.isdigit()):
        return None
    bare = name.removeprefix("[").removesuffix("]")
    is_plain = bare != "" and all(sign.isalnum() or sign in ".-_:" for sign in bare)
    return name if is_plain and bare.isascii() else None


_JSON = "application/json"
_WANTED: Mapping[BodyForm, str] = {
    BodyForm.JSON: "`Content-Type: application/json` in UTF-8",
    BodyForm.NONE: "no body, or `Content-Type: application/json`",
    BodyForm.UPLOAD: "`Content-Type: multipart/form-data` with a boundary",
}


def _suits(content_type: str, form: BodyForm) -> bool:
    if form is BodyForm.UPLOAD:
        kind, separator, _ = content_type.partition(";")
        return kind.strip().lower() == "multipart/form-data" and bool(separator)
    return _is_json(content_type) or (form is BodyForm.NONE and content_type == "")


def _is_json(content_type: str) -> bool:
    kind, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    return kind.strip().lower() == _JSON and charset in {"", "utf-8", "utf8"}


class RequestIds:
    """Ids of 128 random bits, taken from the system for many requests at once: a system call less for each."""

    _AT_ONCE = 256

    def __init__(self) -> None:
        """Have none yet."""
        self._ready: list[str] = []

    def take(self) -> str:
        """Return an id that nobody else has."""
        if not self._ready:
            digits = secrets.token_hex(16 * self._AT_ONCE)
            self._ready = [digits[at : at + 32] for at in range(0, len(digits), 32)]
        return self._ready.pop()


class Gate:
    """Judges each request, counts its body, runs the very route that it judged by, and signs the answer."""

    def __init__(
        self,
        *,
        config: ServeConfig,
        routes: Sequence[BaseRoute],
        callers: Callers,
        limiter: Limiter,
        metrics: Metrics,
        audit: RequestAudit,
        turns: LoopTurns,
        unmatched: Access = Access.INFERENCE,
        traces: Traces = NO_TRACES,
    ) -> None:
        """Guard `routes`, which declare who may call them; what matches none of them takes `unmatched`."""
        self._rules = GateRules(config)
        self._callers = callers
        self._limiter = limiter
        self._notes = RequestNotes(audit, logs_requests=config.log_requests)
        self._turns = turns
        self._limits = body_limits(config)
        self._routes = RouteTable(routes)
        self._request_ids = RequestIds()
        self._unmatched = unmatched
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        await self._guard(scope, receive, send)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._request_ids.take()
        scope.setdefault("state", {})["request_id"] = request_id
        head = RequestHead.from_scope(scope)
        route = self._routes.find(scope)
        # What matches no route is nobody's: it needs a key, so that strangers learn nothing about what exists.
        access = (declared_access(route) if route else None) or self._unmatched
        identity = await self._callers.identify(head.api_key, now_ms=time.time() * 1000, request_id=request_id)
        signed = _SignedSend(
            send,
            request_id=request_id,
            id_names=_ANTHROPIC_ID_NAMES if is_anthropics(scope["path"]) else _ID_NAMES,
            foreign_origin=self._foreign_origin(head),
            limiter=self._limiter,
        )
        started_at = time.perf_counter()
        path = route.path if route else "unmatched"
        arrival = _arrival(head, path, identity, request_id, may_call=identity.may(access))
        with self._watch(arrival, access) as span, request_context(_context(head, identity, request_id, span)):
            try:
                await self._turns.wait(identity.line)
                if signed.foreign_origin is not None and head.is_preflight():
                    await _send_preflight(signed)
                    return
                is_taken = route is None or head.method in (route.methods or ())
                refusal = self._rules.judge(head, access, identity, body_form_of(route) if is_taken else None)
                if refusal is None and not is_taken:
                    refusal = method_not_allowed(self._routes.allowed_methods(scope))
                if refusal is not None:
                    raise refusal
                scope["state"]["identity"] = identity
                if access is Access.INFERENCE:
                    signed.limits_of = identity
                    self._limiter.take_request(identity)
                if route is None:
                    raise HttpError(404, _NOTHING_HERE, code="not_found")
                body = _bounded(receive, self._limits[body_form_of(route)])
                await route.handle(scope, self._in_turn(body, identity), signed)
            except Exception as error:  # noqa: BLE001 - nothing that a request causes may stay unanswered
                answer = answer_error(error, request_id=request_id)
                if answer.is_our_fault:
                    log_failure(error, request_id)
                if signed.status is not None:
                    raise ConnectionAbortedError("An answer broke off after it had begun.") from None
                await _send_error(signed, answer, error_writer_of(route, scope["path"]))
            finally:
                outcome = Outcome(
                    method=arrival.method,
                    route=path,
                    access=access,
                    status=signed.status or CLIENT_GONE_STATUS,
                    duration_s=time.perf_counter() - started_at,
                )
                span.finish(outcome)
                self._metrics.count_http(outcome)
                self._notes.note(outcome, identity, request_id)

    def _in_turn(self, receive: Receive, identity: Identity) -> Receive:
        """Wait for another turn behind the body: those of many requests that were held back may end together."""
        is_whole = False

        async def receive_in_turn() -> Message:
            nonlocal is_whole
            message = await receive()
            if not is_whole and not message.get("more_body", False):
                is_whole = True
                await self._turns.wait(identity.line)
            return message

        return receive_in_turn

    @contextlib.contextmanager
    def _watch(self, arrival: Arrival, access: Access) -> Generator[RequestSpan]:
        """Count a request as long as it is open, and open its span; probes, metrics and the page have none."""
        traces = self._traces if access is Access.INFERENCE else NO_TRACES
        with self._metrics.http_in_flight.track_inprogress(), traces.request(arrival) as span:
            yield span

    def _foreign_origin(self, head: RequestHead) -> str | None:
        origin = head.headers.get("origin")
        return origin if origin is not None and self._rules.allows_origin(origin) else None


def _bounded(receive: Receive, limit: BodyLimit) -> Receive:
    """Count the body while it comes, and the time: one that was not announced, or never ends, is bounded too."""
    received = 0
    deadline: float | None = asyncio.get_running_loop().time() + limit.timeout_s

    async def receive_bounded() -> Message:
        nonlocal received, deadline
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            text = f"The body did not come within {limit.timeout_s:g} s."
            raise HttpError(408, text, code="body_timeout", headers={"Connection": "close"}) from None
        received += len(message.get("body", b""))
        if received > limit.max_bytes:
            raise body_too_large(limit.max_bytes)
        if not message.get("more_body", False):
            deadline = None  # what comes after the body is the news that the client left, in its own time
        return message

    return receive_bounded


def _arrival(head: RequestHead, path: str, identity: Identity, request_id: str, *, may_call: bool) -> Arrival:
    parents = head.headers.keys() & _PARENTS if may_call else ()
    return Arrival(
        request_id=request_id,
        tenant=identity.tenant,
        method=known_method(head.method),
        route=path,
        parents={name: head.headers[name] for name in parents},
    )


def _context(head: RequestHead, identity: Identity, request_id: str, span: RequestSpan) -> RequestContext:
    return RequestContext(
        request_id=request_id,
        tenant=identity.tenant,
        key_id=identity.key_id,
        client_request_id=client_label(head.headers.get("x-request-id", "")),
        trace_id=span.trace_id,
    )


class _SignedSend:
    """Send with the headers that every answer carries."""

    def __init__(
        self,
        send: Send,
        *,
        request_id: str,
        id_names: Sequence[bytes],
        foreign_origin: str | None,
        limiter: Limiter,
    ) -> None:
        self._send = send
        self._request_id = request_id
        self._id_names = id_names
        self._limiter = limiter
        self.foreign_origin = foreign_origin
        self.limits_of: Identity | None = None
        """Who is told what is left of its limits."""
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: list[tuple[bytes, bytes]] = [*message.get("headers", ()), *_SECURITY_HEADERS]
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in _DEFAULT_HEADERS if name not in present]
            headers += [(name, self._request_id.encode()) for name in self._id_names]
            if self.limits_of is not None:
                headers += self._limiter.headers(self.limits_of)
            if self.foreign_origin is not None:
                headers += [
                    (b"access-control-allow-origin", self.foreign_origin.encode("latin-1")),
                    (b"vary", b"Origin"),
                ]
            message = {**message, "headers": headers}
        await self._send(message)


async def _send_error(send: Send, answer: ErrorAnswer, write_error: WriteError) -> None:
    body = msgspec.json.encode(write_error(answer))
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", b"authorization, *"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
