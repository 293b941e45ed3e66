"""Serve and stop cleanly: uvicorn under our own rules for signals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from qwenstack.serving.config import ServeConfig
from qwenstack.serving.connection import Lifetime
from qwenstack.serving.listener import open_socket

if TYPE_CHECKING:
    from qwenstack.serving.grpc import GrpcServer

OnReady = Callable[[Sequence[str]], None]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CONNECTIONS_A_TURN = 16
"""libuv takes one connection from a socket in a turn of the loop (its pull request 3696), and a busy turn takes 2 to 7
ms: beside a tenant that opened many, the p95 until anything was read of another's request was 23 ms (lab notes)."""


def run_server(app: FastAPI, config: ServeConfig, *, on_ready: OnReady | None = None) -> None:
    """Take the port and serve until SIGINT or SIGTERM, in an event loop of its own.

    Raises:
        ConfigError: the host or port cannot be used; the message says what to change.
    """
    with contextlib.closing(open_socket(config)) as listener:
        loop_factory = _uvicorn_config(app, config).get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(serve_app(app, config, listener=listener, on_ready=on_ready))


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """An application and where it is to be reached."""

    app: FastAPI
    """What `create_app` or `create_admin_app` made; `app.state.lifetime.stop()` ends the server."""
    config: ServeConfig
    """The same configuration."""
    listener: socket.socket
    """What `open_socket` opened."""
    on_ready: OnReady | None = None
    """Called once with the addresses when requests are taken."""


async def serve_app(
    app: FastAPI,
    config: ServeConfig,
    *,
    listener: socket.socket,
    on_ready: OnReady | None = None,
    administration: Door | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then end open answers and return; a second signal returns at once.

    Args:
        app: what `create_app` made; `app.state.lifetime.stop()` ends the server too.
        config: the same configuration.
        listener: what `open_socket` opened.
        on_ready: called once with the addresses when requests are taken.
        administration: a second application over the same parts, which starts and stops with the first.

    Raises:
        ConfigError: the gRPC port cannot be had.
    """
    lifetime: Lifetime = app.state.lifetime
    grpc: GrpcServer | None = app.state.grpc
    server = _Server(Door(app=app, config=config, listener=listener, on_ready=on_ready), grpc=grpc)
    beside: asyncio.Task[None] | None = None
    try:
        if grpc is not None:
            await grpc.start()
        if administration is not None:
            second = _SecondServer(administration)
            beside = asyncio.create_task(second.serve(sockets=[administration.listener]))
        await server.serve(sockets=_several(listener))
    finally:
        lifetime.stop()  # also where the first server never came to serve
        if beside is not None:
            await _end(beside, at_once=server.force_exit)
        if grpc is not None:
            await grpc.stop(grace_s=0)


async def _end(task: asyncio.Task[None], *, at_once: bool) -> None:
    """Wait until a server has ended."""
    if at_once:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _uvicorn_config(app: FastAPI, config: ServeConfig) -> uvicorn.Config:
    # Its lines would hold addresses and paths; `request_log` writes ours.
    logging.getLogger("uvicorn.access").disabled = True
    http: type[asyncio.Protocol] | str = "h11"
    if importlib.util.find_spec("httptools") is not None:
        from qwenstack.serving.http_protocol import HttpLimits, bounded_protocol

        limits = HttpLimits(
            max_header_bytes=config.max_header_bytes,
            header_timeout_s=config.header_timeout_s,
            send_timeout_s=config.send_timeout_s,
        )
        http = bounded_protocol(limits)
    return uvicorn.Config(
        app,
        http=http,
        h11_max_incomplete_event_size=config.max_header_bytes,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Who the client is comes from the connection: headers about it can be forged.
        proxy_headers=False,
        timeout_keep_alive=config.keep_alive_timeout_s,
        timeout_graceful_shutdown=config.shutdown_timeout_s,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which tells open answers that it stops, and does not raise the signal again afterwards."""

    def __init__(self, door: Door, *, grpc: GrpcServer | None = None) -> None:
        super().__init__(_uvicorn_config(door.app, door.config))
        self._lifetime: Lifetime = door.app.state.lifetime
        self._grpc = grpc
        self._on_ready = door.on_ready
        self._forced = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and self._on_ready is not None:
            scheme = "https" if self.config.is_ssl else "http"
            urls = [_url_of(listener, scheme=scheme) for listener in (sockets or ())[:1]]
            self._on_ready([*urls, *([f"grpc://{self._grpc.address}"] if self._grpc is not None else [])])

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._lifetime.is_stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._lifetime.stop()
        closing = asyncio.ensure_future(self._close(sockets))
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait((closing, forced), return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if closing.done():
            closing.result()
        closing.cancel()

    async def _close(self, sockets: list[socket.socket] | None) -> None:
        # The application goes last: what it closes, such as the audit log, gRPC's calls need until they have ended.
        if self._grpc is not None:
            await self._grpc.stop(grace_s=self.config.timeout_graceful_shutdown or 0)
        await super().shutdown(sockets=sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._loop = asyncio.get_running_loop()
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.should_exit:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._forced.set)
        self.should_exit = True


class _SecondServer(_Server):
    """One beside another, which takes the signals and ends the life of both."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _several(listener: socket.socket) -> list[socket.socket]:
    """Return sockets that share a queue of connections, the listener first; whoever serves them closes all."""
    return [listener, *(listener.dup() for _ in range(_CONNECTIONS_A_TURN - 1))]


def _url_of(listener: socket.socket, *, scheme: str) -> str:
    address: tuple[str, int] = listener.getsockname()[:2]
    host, port = address
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
