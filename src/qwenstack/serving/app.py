"""The HTTP application: endpoints over one model, behind the gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from fastapi import FastAPI, Response
from fastapi.routing import APIRouter
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from qwenstack.core.errors import MissingExtraError
from qwenstack.core.loop_turns import LoopTurns
from qwenstack.core.protocols import AsyncLLM, Embedder
from qwenstack.serving.access import KeyRoute, check_routes
from qwenstack.serving.audit import RequestAudit
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.connection import Lifetime
from qwenstack.serving.embedding_service import EmbeddingService
from qwenstack.serving.gate import Gate
from qwenstack.serving.identity import Access, Callers, KeyRing, check_binding
from qwenstack.serving.key_watch import watching
from qwenstack.serving.limiter import Limiter
from qwenstack.serving.metrics import Metrics
from qwenstack.serving.oidc_config import OidcConfig
from qwenstack.serving.openapi import API_DESCRIPTION, API_VERSION, build_openapi
from qwenstack.serving.records import Records
from qwenstack.serving.rest.anthropic import anthropic_routes
from qwenstack.serving.rest.batch_lines import line_answers
from qwenstack.serving.rest.batches import batch_routes
from qwenstack.serving.rest.chat import chat_routes
from qwenstack.serving.rest.completions import completion_routes
from qwenstack.serving.rest.embeddings import embedding_routes
from qwenstack.serving.rest.endpoint import Backend, key_router
from qwenstack.serving.rest.files import file_routes
from qwenstack.serving.rest.health import health_routes, metrics_routes
from qwenstack.serving.rest.infill import infill_routes
from qwenstack.serving.rest.models import model_routes
from qwenstack.serving.rest.ollama import ollama_routes
from qwenstack.serving.rest.ollama_embeddings import ollama_embedding_routes
from qwenstack.serving.rest.ollama_models import ollama_model_routes
from qwenstack.serving.rest.qwen3 import qwen3_routes
from qwenstack.serving.rest.responses import response_routes
from qwenstack.serving.rest.tokens import token_routes
from qwenstack.serving.service import GenerationService
from qwenstack.serving.site import read_site, site_routes
from qwenstack.serving.traces import NO_TRACES, Traces
from qwenstack.serving.usage import MemoryRecords, UsageLedger, writing
from qwenstack.storage import ApiKeys, AuditLog, Database, UsageRecords

if TYPE_CHECKING:
    from qwenstack.serving.grpc import GrpcServer
    from qwenstack.serving.oidc.tokens import TokenVerifier


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """What the applications of one server share."""

    llm: AsyncLLM
    backend: Backend
    keys: KeyRing
    callers: Callers
    limiter: Limiter
    metrics: Metrics
    audit: RequestAudit
    traces: Traces
    database: Database | None
    turns: LoopTurns


def create_app(
    llm: AsyncLLM,
    config: ServeConfig,
    *,
    database: Database | None = None,
    embedder: Embedder | None = None,
    traces: Traces = NO_TRACES,
) -> FastAPI:
    """Build the application.

    Args:
        llm: the model.
        config: where and how it is served.
        database: holds API keys, the audit log, what tenants keep and what was used; None: only configured keys open
            the server, and nothing is logged or kept.
        embedder: makes vectors of texts; None: requests for them are refused.
        traces: where spans of requests go.

    Raises:
        ConfigError: the configuration would leave the server open, or a route does not say who may call it.
        MissingExtraError: gRPC is wanted and not installed.
        StorageError: the database cannot be read.
    """
    stored = ApiKeys(database) if database is not None else None
    snapshot = stored.snapshot() if stored is not None else None
    keys = KeyRing(config.api_keys, snapshot, admin_keys=config.admin_keys, is_closed=config.oidc is not None)
    check_binding(config, keys)
    metrics = Metrics(config.served_model_name or llm.card.id)
    audit = RequestAudit(
        AuditLog(database).append if database is not None else None, count_lost=metrics.count_lost_audit
    )
    ledger = UsageLedger(UsageRecords(database) if database is not None else MemoryRecords())
    limiter = Limiter(config.limits, ledger, count_refusal=metrics.count_limited)
    turns = LoopTurns()
    service = GenerationService(llm, config, metrics, limiter, turns=turns, traces=traces)
    backend = Backend(
        service=service,
        embeddings=EmbeddingService(embedder, metrics, limiter),
        lifetime=Lifetime(),
        ping_interval_s=config.ping_interval_s,
    )
    records = Records(service, config, database, keys=keys, make_answers=partial(line_answers, backend))
    parts = ServerParts(
        llm=llm,
        backend=backend,
        keys=keys,
        callers=Callers(keys, None if config.oidc is None else _token_verifier(config.oidc)),
        limiter=limiter,
        metrics=metrics,
        audit=audit,
        traces=traces,
        database=database,
        turns=turns,
    )
    app = bare_app(title="qwenstack", description=API_DESCRIPTION, lifespan=_lifespan(parts, stored, records, ledger))
    routers = (
        chat_routes(backend),
        completion_routes(backend),
        embedding_routes(backend),
        response_routes(backend, records.responses),
        file_routes(records.files),
        batch_routes(records.batches),
        anthropic_routes(backend),
        ollama_routes(backend),
        ollama_embedding_routes(backend),
        ollama_model_routes(backend),
        infill_routes(backend),
        token_routes(backend),
        model_routes(backend),
        qwen3_routes(backend),
        health_routes(backend),
        metrics_routes(backend, metrics),
        openapi_routes(lambda: build_openapi(app)),
        site_routes(read_site(config.static_dir), api_url=f"{config.scheme}://{config.host}:{config.port}/v1"),
    )
    guard(app, routers, config=config, parts=parts)
    app.state.grpc = _grpc_server(parts, config)
    return app


class GuardedApp(FastAPI):
    """An application that describes its routes and leaves every request to its gate, which runs them."""

    gate: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and stop what runs beside the requests, or have the gate answer one."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
        else:
            scope["app"] = self
            await self.gate(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Build what runs beside the requests.

        Raises:
            TypeError: something was added that no request would pass.
        """
        if self.user_middleware:
            raise TypeError("Requests pass the gate alone: wrap `app.gate` instead of adding a middleware.")
        return super().build_middleware_stack()


def bare_app(
    *,
    title: str,
    description: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> GuardedApp:
    """Make an application without routes, and without any that the framework would add."""
    return GuardedApp(
        title=title,
        version=API_VERSION,
        description=description,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )


def guard(
    app: GuardedApp,
    routers: Iterable[APIRouter],
    *,
    config: ServeConfig,
    parts: ServerParts,
    unmatched: Access = Access.INFERENCE,
) -> None:
    """Give an application its routes and put the gate before them; `unmatched` is what all other addresses take.

    Raises:
        ConfigError: a route does not say who may call it.
    """
    # The routes themselves, not routers of routers: the gate reads from each who may call it.
    routes: Sequence[BaseRoute] = [route for router in routers for route in router.routes]
    check_routes(routes)
    app.router.routes.extend(routes)
    app.state.lifetime = parts.backend.lifetime
    app.state.parts = parts
    app.gate = Gate(
        config=config,
        routes=routes,
        callers=parts.callers,
        limiter=parts.limiter,
        metrics=parts.metrics,
        audit=parts.audit,
        turns=parts.turns,
        traces=parts.traces,
        unmatched=unmatched,
    )


def _lifespan(
    parts: ServerParts, stored: ApiKeys | None, records: Records, ledger: UsageLedger
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def run_beside(_: FastAPI) -> AsyncGenerator[None]:
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(writing(ledger))
                if stored is not None:
                    await stack.enter_async_context(watching(parts.keys, stored))
                await stack.enter_async_context(records.running())
                yield
        finally:
            await asyncio.to_thread(parts.audit.close)
            await parts.callers.close()

    return run_beside


def _grpc_server(parts: ServerParts, config: ServeConfig) -> GrpcServer | None:
    """Build the gRPC server on the same parts, where one is wanted; `serve_app` starts and stops it."""
    if config.grpc_port is None:
        return None
    from qwenstack.serving.grpc import create_grpc_server

    backend = parts.backend
    return create_grpc_server(
        backend.service,
        backend.embeddings,
        config,
        callers=parts.callers,
        limiter=parts.limiter,
        metrics=parts.metrics,
        audit=parts.audit,
        lifetime=backend.lifetime,
        turns=parts.turns,
    )


def _token_verifier(config: OidcConfig) -> TokenVerifier:
    try:
        from qwenstack.serving.oidc.key_set import KeySet
        from qwenstack.serving.oidc.tokens import TokenVerifier
    except ModuleNotFoundError:
        raise MissingExtraError(
            "`oidc.issuer` needs PyJWT: install it with `.venv/bin/pip install -e '.[oidc]'`."
        ) from None
    return TokenVerifier(config, KeySet(config))


def openapi_routes(build: Callable[[], object], route_class: type[KeyRoute] = KeyRoute) -> APIRouter:
    """Make the endpoint that shows an application's document, which is built when it is first asked for."""
    router = key_router(route_class)
    document: bytes | None = None

    @router.get("/openapi.json", include_in_schema=False)
    async def read_openapi() -> Response:
        nonlocal document
        document = document or msgspec.json.encode(build())
        return Response(document, media_type="application/json")

    return router
