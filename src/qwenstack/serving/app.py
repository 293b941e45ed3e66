"""The HTTP application: endpoints over one model, behind the gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRouter
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from qwenstack.core.protocols import AsyncLLM, Embedder
from qwenstack.serving.access import check_routes
from qwenstack.serving.audit import RequestAudit
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.connection import Lifetime
from qwenstack.serving.embedding_service import EmbeddingService
from qwenstack.serving.gate import Gate
from qwenstack.serving.identity import KeyRing, check_binding
from qwenstack.serving.key_watch import watching
from qwenstack.serving.metrics import Metrics
from qwenstack.serving.openapi import API_DESCRIPTION, API_VERSION, build_openapi
from qwenstack.serving.records import Records
from qwenstack.serving.rest.anthropic import anthropic_routes
from qwenstack.serving.rest.chat import chat_routes
from qwenstack.serving.rest.completions import completion_routes
from qwenstack.serving.rest.embeddings import embedding_routes
from qwenstack.serving.rest.endpoint import Backend, key_router
from qwenstack.serving.rest.health import health_routes, metrics_routes
from qwenstack.serving.rest.infill import infill_routes
from qwenstack.serving.rest.models import model_routes
from qwenstack.serving.rest.ollama import ollama_routes
from qwenstack.serving.rest.ollama_embeddings import ollama_embedding_routes
from qwenstack.serving.rest.qwen3 import qwen3_routes
from qwenstack.serving.rest.responses import response_routes
from qwenstack.serving.rest.tokens import token_routes
from qwenstack.serving.service import GenerationService
from qwenstack.serving.site import read_site, site_routes
from qwenstack.storage import ApiKeys, AuditLog, Database

if TYPE_CHECKING:
    from qwenstack.serving.grpc import GrpcServer


def create_app(
    llm: AsyncLLM, config: ServeConfig, *, database: Database | None = None, embedder: Embedder | None = None
) -> FastAPI:
    """Build the application.

    Args:
        llm: the model.
        config: where and how it is served.
        database: holds API keys, the audit log and what tenants keep; None: only configured keys open the server, and
            nothing is logged or kept.
        embedder: makes vectors of texts; None: requests for them are refused.

    Raises:
        ConfigError: the configuration would leave the server open, or a route does not say who may call it.
        MissingExtraError: gRPC is wanted and not installed.
        StorageError: the database cannot be read.
    """
    stored = ApiKeys(database) if database is not None else None
    keys = KeyRing(config.api_keys, stored.snapshot() if stored is not None else None)
    check_binding(config, keys)
    metrics = Metrics(config.served_model_name or llm.card.id)
    audit = RequestAudit(
        AuditLog(database).append if database is not None else None, count_lost=metrics.count_lost_audit
    )
    service = GenerationService(llm, config, metrics)
    backend = Backend(
        service=service,
        embeddings=EmbeddingService(embedder, metrics),
        lifetime=Lifetime(),
        ping_interval_s=config.ping_interval_s,
    )
    records = Records(service, config, database)
    app = FastAPI(
        title="qwenstack",
        version=API_VERSION,
        description=API_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(keys, stored, audit, records),
    )
    routers = (
        chat_routes(backend),
        completion_routes(backend),
        embedding_routes(backend),
        response_routes(backend, records.responses),
        anthropic_routes(backend),
        ollama_routes(backend),
        ollama_embedding_routes(backend),
        infill_routes(backend),
        token_routes(backend),
        model_routes(backend),
        qwen3_routes(backend),
        health_routes(backend),
        metrics_routes(backend, metrics),
        _openapi_routes(app),
        site_routes(read_site(config.static_dir), api_url=f"{config.scheme}://{config.host}:{config.port}/v1"),
    )
    # The routes themselves, not routers of routers: the gate reads from each who may call it.
    routes: Sequence[BaseRoute] = [route for router in routers for route in router.routes]
    check_routes(routes)
    app.router.routes.extend(routes)
    app.state.lifetime = backend.lifetime
    app.state.grpc = _grpc_server(backend, config, keys, metrics, audit)
    for error_type in (HTTPException, RequestValidationError):
        app.add_exception_handler(error_type, _leave_to_the_gate)
    app.add_middleware(Gate, config=config, routes=routes, keys=keys, metrics=metrics, audit=audit)
    return app


def _lifespan(
    keys: KeyRing, stored: ApiKeys | None, audit: RequestAudit, records: Records
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def run_beside(_: FastAPI) -> AsyncGenerator[None]:
        try:
            async with AsyncExitStack() as stack:
                if stored is not None:
                    await stack.enter_async_context(watching(keys, stored))
                await stack.enter_async_context(records.running())
                yield
        finally:
            await asyncio.to_thread(audit.close)

    return run_beside


def _grpc_server(
    backend: Backend, config: ServeConfig, keys: KeyRing, metrics: Metrics, audit: RequestAudit
) -> GrpcServer | None:
    """Build the gRPC server on the same parts, where one is wanted; `serve_app` starts and stops it."""
    if config.grpc_port is None:
        return None
    from qwenstack.serving.grpc import create_grpc_server

    return create_grpc_server(
        backend.service, backend.embeddings, config, keys=keys, metrics=metrics, audit=audit, lifetime=backend.lifetime
    )


async def _leave_to_the_gate(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Switch off the framework's own answer; the gate answers every error."""
    raise error


def _openapi_routes(app: FastAPI) -> APIRouter:
    router = key_router()
    document: bytes | None = None

    @router.get("/openapi.json", include_in_schema=False)
    async def read_openapi() -> Response:
        nonlocal document
        document = document or msgspec.json.encode(build_openapi(app))
        return Response(document, media_type="application/json")

    return router
