"""The gRPC server: what listens, with which limits, and how it stops."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio

from qwenstack.core.errors import ConfigError
from qwenstack.core.loop_turns import LoopTurns
from qwenstack.serving.audit import RequestAudit
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.connection import Lifetime
from qwenstack.serving.embedding_service import EmbeddingService
from qwenstack.serving.grpc.embeddings import EmbeddingRpc
from qwenstack.serving.grpc.gate import Gate
from qwenstack.serving.grpc.generation import GenerationRpc
from qwenstack.serving.grpc.health import HealthRpc
from qwenstack.serving.grpc.method import Service, read_methods
from qwenstack.serving.grpc.models import ModelRpc
from qwenstack.serving.grpc.places import MAX_CALLS
from qwenstack.serving.grpc.reflection import ReflectionRpc
from qwenstack.serving.grpc.tokens import TokenRpc
from qwenstack.serving.identity import Callers
from qwenstack.serving.limiter import Limiter
from qwenstack.serving.metrics import Metrics
from qwenstack.serving.readiness import why_not_ready
from qwenstack.serving.service import GenerationService
from qwenstack.serving.tls import TlsFiles, read_tls

MAX_STREAMS = 128
"""Open at the same time on one connection; a client waits with more. gRPC's guides have 100 as the usual value."""


def create_grpc_server(
    service: GenerationService,
    embeddings: EmbeddingService,
    config: ServeConfig,
    *,
    callers: Callers,
    limiter: Limiter,
    metrics: Metrics,
    audit: RequestAudit,
    lifetime: Lifetime,
    turns: LoopTurns,
) -> GrpcServer:
    """Build the server on the parts that it shares with the HTTP application.

    Raises:
        ConfigError: a method does not say who may call it, or the TLS files cannot be used.
    """

    async def answers() -> bool:
        return await why_not_ready(service, lifetime) is None

    async def embeds() -> bool:
        return embeddings.card is not None and not lifetime.is_stopping

    ours: list[Service] = [GenerationRpc(service), ModelRpc(service, embeddings), TokenRpc(service)]
    embedding = EmbeddingRpc(embeddings)
    health = HealthRpc(dict.fromkeys(["", *_names(ours)], answers) | dict.fromkeys(_names([embedding]), embeds))
    named = [*ours, embedding, health]
    methods = read_methods([*named, ReflectionRpc(_names(named))])
    gate = Gate(
        methods,
        callers=callers,
        limiter=limiter,
        metrics=metrics,
        audit=audit,
        lifetime=lifetime,
        turns=turns,
        config=config,
    )
    return GrpcServer(gate, config)


class GrpcServer:
    """Listens from `start` to `stop`."""

    def __init__(self, gate: Gate, config: ServeConfig) -> None:
        """Listen where the configuration says, once started.

        Raises:
            ConfigError: the TLS files cannot be used.
        """
        self._gate = gate
        self._config = config
        self._tls = read_tls(config)
        self._server: grpc.aio.Server | None = None
        self.address = ""
        """HOST:PORT, once started."""

    async def start(self) -> None:
        """Take the port and serve.

        Raises:
            ConfigError: the port cannot be had.
        """
        config = self._config
        host = f"[{config.host}]" if ":" in config.host else config.host
        server = grpc.aio.server(options=_options(config), maximum_concurrent_rpcs=MAX_CALLS)
        server.add_generic_rpc_handlers((self._gate,))
        try:
            port = _add_port(server, f"{host}:{config.grpc_port}", self._tls)
            await server.start()
        except RuntimeError:
            raise ConfigError(
                f"Cannot listen on {host}:{config.grpc_port} for gRPC. Choose another port with `--grpc-port`."
            ) from None
        self._server = server
        self.address = f"{host}:{port}"

    async def stop(self, *, grace_s: float) -> None:
        """Take no more calls, give open ones this long to end, and return; again, it does nothing."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)


def _add_port(server: grpc.aio.Server, address: str, tls: TlsFiles | None) -> int:
    if tls is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, grpc.ssl_server_credentials([(tls.key, tls.cert)]))


def _names(services: Sequence[Service]) -> list[str]:
    return [service.descriptor.full_name for service in services]


def _options(config: ServeConfig) -> list[tuple[str, int]]:
    """Return the limits of connections and messages, by the names of grpc's channel arguments."""
    return [
        ("grpc.max_receive_message_length", config.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        # A compressed message could unfold to more than the limit above: as over HTTP, none is read.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_metadata_size", config.max_header_bytes),
        ("grpc.absolute_max_metadata_size", config.max_header_bytes),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.server_handshake_timeout_ms", int(config.header_timeout_s * 1000)),
        # Who falls silent is asked after a minute and cut after 20 s more; who asks more often than every 10 s is cut.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.max_connection_idle_ms", 300_000),
        # Otherwise a second program could take the same port and get a share of the calls.
        ("grpc.so_reuseport", 0),
    ]
