"""A real server on the loopback, over the toy model of the unit tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "serving"))

from toy_embedder import ToyEmbedder
from toy_llm import ToyLLM

from qwenstack.retrieval import EmbedderProcess, e5_embedder
from qwenstack.serving import (
    Door,
    ServeConfig,
    admin_config,
    create_admin_app,
    create_app,
    open_socket,
    serve_app,
)
from qwenstack.storage import Database

Serve = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture
def llm() -> ToyLLM:
    return ToyLLM()


@contextlib.contextmanager
def running(
    llm: ToyLLM, config: ServeConfig, embedder: EmbedderProcess | None = None, database: Database | None = None
) -> Iterator[str]:
    """Serve in another thread, at a port that the system chooses."""
    with running_at(llm, config, embedder=embedder, database=database) as urls:
        yield urls[0]


@contextlib.contextmanager
def running_at(
    llm: ToyLLM,
    config: ServeConfig,
    database: Database | None = None,
    embedder: EmbedderProcess | ToyEmbedder | None = None,
    *,
    has_administration: bool = False,
) -> Iterator[Sequence[str]]:
    """Serve in another thread, at free ports; HTTP's address comes first, the administration's last."""
    config = replace(config, port=0)
    app = create_app(llm, config, database=database, embedder=embedder)
    door = administration_of(app, config) if has_administration else None
    started: Future[tuple[Sequence[str], asyncio.AbstractEventLoop]] = Future()

    async def serve(listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await serve_app(
                app,
                config,
                listener=listener,
                on_ready=lambda urls: started.set_result((urls, loop)),
                administration=door,
            )
        finally:
            if embedder is not None:
                await embedder.close()

    with contextlib.closing(open_socket(config)) as listener, contextlib.ExitStack() as stack:
        if door is not None:
            stack.callback(door.listener.close)
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        urls, loop = started.result(timeout=20)
        try:
            yield urls if door is None else [*urls, f"http://127.0.0.1:{door.listener.getsockname()[1]}"]
        finally:
            loop.call_soon_threadsafe(app.state.lifetime.stop)
            thread.join(20)
            assert not thread.is_alive()


def administration_of(app: FastAPI, config: ServeConfig) -> Door:
    """Make the administration of a server; it takes connections at once and answers when that serves."""
    config = admin_config(config, host="127.0.0.1", port=0)
    return Door(app=create_admin_app(app, config), config=config, listener=open_socket(config))


@pytest.fixture
def serve(llm: ToyLLM) -> Serve:
    return lambda *, database=None, **fields: running(llm, ServeConfig(**fields), database=database)


@pytest.fixture
def embedding_url(llm: ToyLLM) -> Iterator[str]:
    """A server with the real embedding model beside the toy."""
    with running(llm, ServeConfig(), e5_embedder()) as address:
        yield address


@pytest.fixture
def url(serve: Serve) -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.fixture(scope="session")
def serve_at() -> Callable[..., contextlib.AbstractContextManager[Sequence[str]]]:
    return running_at


@pytest.fixture
def serve_both(llm: ToyLLM) -> Callable[..., contextlib.AbstractContextManager[tuple[str, str]]]:
    """Serve HTTP and gRPC; yields the URL of the one and the HOST:PORT of the other."""

    @contextlib.contextmanager
    def serve(
        database: Database | None = None, embedder: ToyEmbedder | None = None, **fields: Any
    ) -> Iterator[tuple[str, str]]:
        with running_at(llm, ServeConfig(grpc_port=0, **fields), database, embedder) as (url, grpc_url):
            yield url, grpc_url.removeprefix("grpc://")

    return serve
