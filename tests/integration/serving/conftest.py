"""A real server on the loopback, over the toy model of the unit tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "serving"))

from toy_llm import ToyLLM

from qwenstack.retrieval import E5Embedder
from qwenstack.serving import ServeConfig, create_app, open_socket, serve_app

Serve = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture
def llm() -> ToyLLM:
    return ToyLLM()


@contextlib.contextmanager
def running(llm: ToyLLM, config: ServeConfig, embedder: E5Embedder | None = None) -> Iterator[str]:
    """Serve in another thread, at a port that the system chooses."""
    config = replace(config, port=0)
    app = create_app(llm, config, embedder=embedder)
    started: Future[tuple[str, asyncio.AbstractEventLoop]] = Future()

    async def serve(listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await serve_app(app, config, listener=listener, on_ready=lambda urls: started.set_result((urls[0], loop)))
        finally:
            if embedder is not None:
                await embedder.close()

    with contextlib.closing(open_socket(config)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        url, loop = started.result(timeout=20)
        try:
            yield url
        finally:
            loop.call_soon_threadsafe(app.state.lifetime.stop)
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def serve(llm: ToyLLM) -> Serve:
    return lambda **fields: running(llm, ServeConfig(**fields))


@pytest.fixture
def embedding_url(llm: ToyLLM) -> Iterator[str]:
    """A server with the real embedding model beside the toy."""
    with running(llm, ServeConfig(), E5Embedder()) as address:
        yield address


@pytest.fixture
def url(serve: Serve) -> Iterator[str]:
    with serve() as address:
        yield address
