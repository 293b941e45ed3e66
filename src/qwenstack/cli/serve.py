"""`qwenstack serve`: the server and the web page."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import qwenstack
from qwenstack.cli.administration import AdminPlan, load_admin_key, plan_administration
from qwenstack.cli.embedding import make_embedder
from qwenstack.cli.loading import engine_config, fetch_model
from qwenstack.cli.options import Assignments, ModelArgument
from qwenstack.cli.settings import OidcSettings, Settings, load_settings
from qwenstack.cli.storage import NO_DATABASE, open_storage
from qwenstack.core.config import Resolved, secrets_of
from qwenstack.core.errors import ConfigError
from qwenstack.core.heap import keep_what_is_here
from qwenstack.logs import LogConfig, logging_to

if TYPE_CHECKING:
    import asyncio

    from qwenstack.engine import EngineConfig
    from qwenstack.retrieval import EmbedderProcess
    from qwenstack.serving import ServeConfig, Traces
    from qwenstack.serving.oidc_config import OidcConfig
    from qwenstack.storage import Database

logger = logging.getLogger(__name__)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where to listen, and to whom."""

    host: str | None = None
    """Address to listen on; any but this machine's own needs a key. [default: 127.0.0.1]"""
    port: int | None = None
    """Port to listen on. [default: 8000]"""
    grpc_port: int | None = None
    """Port to listen on for gRPC, such as 50051; default: no gRPC."""
    api_key: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """Key that clients must show; QWENSTACK_API_KEYS hides it from this machine's list of processes."""
    served_model_name: str | None = None
    """Name of the model for clients; default: its own name."""
    max_model_len: int | None = None
    """Prompt and answer together, in tokens; default: as many as the model was trained for."""
    yarn_factor: float | None = None
    """Stretch the context by this factor with YaRN, such as 4; costs a little on short texts."""
    num_threads: int | None = None
    """Threads of the kernels; default: one for each core."""
    adapter: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """LoRA adapter that requests may name, as NAME=FOLDER."""
    merge_adapter: Path | None = None
    """Folder of one LoRA adapter to add to the weights for good."""
    embedding_model: str | None = None
    """Model that makes vectors of texts, or off. [default: multilingual-e5-small]"""

    def by_key(self) -> dict[str, object]:
        """Return the values by the settings they stand for; None where the option was not used."""
        return {
            "server.host": self.host,
            "server.port": self.port,
            "server.grpc_port": self.grpc_port,
            "server.api_keys": self.api_key or None,
            "server.served_model_name": self.served_model_name,
            "engine.max_model_len": self.max_model_len,
            "engine.yarn_factor": self.yarn_factor,
            "engine.num_threads": self.num_threads,
            "engine.adapters": self.adapter or None,
            "engine.merged_adapter": self.merge_adapter,
            "embedding.model": self.embedding_model,
        }


_NO_OPTIONS = ServeOptions()


def serve(
    model: ModelArgument = None,
    /,
    *,
    options: ServeOptions = _NO_OPTIONS,
    assignments: Assignments = (),
) -> None:
    """Serve a model over HTTP, with a chat page for the browser."""
    resolved = load_settings(assignments, {"model": model, **options.by_key()})
    settings = resolved.value
    with logging_to(config=log_config(settings), secrets=secrets_of(settings)):
        _prepare_and_serve(resolved)


def _prepare_and_serve(resolved: Resolved[Settings]) -> None:
    import asyncio

    from qwenstack.cli.tracing import traces_to
    from qwenstack.serving import KeyRing, check_binding, open_socket
    from qwenstack.storage import ApiKeys

    settings = resolved.value
    if os.environ.get("QWENSTACK_API_KEY") and not settings.server.api_keys:
        logger.warning("QWENSTACK_API_KEY is the key that clients send. A server's own keys are QWENSTACK_API_KEYS.")
    config = serve_config(settings)
    keeps_nothing = settings.storage.url == NO_DATABASE
    # What can be refused is refused before a long download.
    with contextlib.nullcontext() if keeps_nothing else open_storage(settings.storage) as database:
        stored = None if database is None else ApiKeys(database).snapshot()
        check_binding(config, KeyRing(config.api_keys, stored, is_closed=config.oidc is not None))
        with contextlib.closing(open_socket(config)) as listener, contextlib.ExitStack() as stack:
            plan = plan_administration(resolved, config)
            if plan is not None:
                stack.callback(plan.listener.close)
                config = replace(config, admin_keys=(load_admin_key(plan.key_path.parent),))
            traces = stack.enter_context(traces_to(settings.otel.endpoint))
            pulled = fetch_model(settings)
            logger.info("Loading %s ...", pulled.name)
            engine, embedder = engine_config(settings, pulled), make_embedder(settings)
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(_serve(engine, log_config(settings), config, listener, database, embedder, plan, traces))


async def _serve(
    engine: EngineConfig,
    logs: LogConfig,
    config: ServeConfig,
    listener: socket.socket,
    database: Database | None,
    embedder: EmbedderProcess | None,
    plan: AdminPlan | None,
    traces: Traces,
) -> None:
    """Load the model in a process of its own and serve it until a signal."""
    import asyncio

    from qwenstack.engine.client import EngineClient

    # To import what the applications are made of takes as long as to load a small model: both at once.
    importing = asyncio.to_thread(importlib.import_module, "qwenstack.serving.admin.app")
    client, _ = await asyncio.gather(EngineClient.start(engine, logs=logs), importing)
    try:
        from qwenstack.serving import Door, create_admin_app, create_app, serve_app

        config = replace(config, default_sampling=client.default_sampling)
        app = create_app(client, config, database=database, embedder=embedder, traces=traces)
        administration = None
        if plan is not None:
            administration = Door(
                app=create_admin_app(app, plan.config),
                config=plan.config,
                listener=plan.listener,
                on_ready=lambda urls: _announce_administration(urls, plan.key_path),
            )
        keep_what_is_here()
        await serve_app(
            app,
            config,
            listener=listener,
            on_ready=lambda urls: _announce(client.card.id, urls),
            administration=administration,
        )
    finally:
        await client.close()
        if embedder is not None:
            await embedder.close()


def serve_config(settings: Settings) -> ServeConfig:
    """Return how the server shall be set up.

    Raises:
        ConfigError: a value does not suit it.
    """
    from qwenstack.serving import ServeConfig

    public = {name: value for name, value in asdict(settings.server).items() if not name.startswith("admin_")}
    return ServeConfig(
        **public,
        limits=settings.limits,
        static_dir=static_dir(),
        log_requests=settings.log.requests,
        retention_days=settings.storage.retention_days,
        max_response_bytes=settings.storage.max_response_bytes,
        adapters_folder=settings.adapters.folder,
        oidc=oidc_config(settings.oidc),
        files_dir=settings.storage.files_dir,
        max_files_bytes=settings.storage.max_files_bytes,
        max_upload_bytes=settings.storage.max_upload_bytes,
    )


def oidc_config(settings: OidcSettings) -> OidcConfig | None:
    """Return whose tokens shall open the server; None: nobody's.

    Raises:
        ConfigError: a value does not suit it.
    """
    from qwenstack.serving.oidc_config import OidcConfig

    if settings.issuer is None:
        return None
    if settings.audience is None:
        raise ConfigError("`oidc.issuer` is set and `oidc.audience` is not: tokens for other services would count.")
    return OidcConfig(**asdict(settings))


def log_config(settings: Settings) -> LogConfig:
    """Return how the server and its engine shall log."""
    return LogConfig(format=settings.log.format, level=settings.log.level)


def static_dir() -> Path:
    """Return where the built web page is, if it was built."""
    return Path(qwenstack.__file__).parent / "serving" / "static"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # there is none for Windows; asyncio's own loop is slower, not different
        return None
    return uvloop.new_event_loop


def _announce(name: str, urls: Sequence[str]) -> None:
    for url in urls:
        if url.startswith("grpc://"):
            logger.info("%s answers gRPC at %s.", name, url.removeprefix("grpc://"))
        else:
            logger.info("%s answers at %s (API: %s/v1). Ctrl-C stops.", name, url, url)


def _announce_administration(urls: Sequence[str], key_path: Path) -> None:
    for url in urls:
        logger.info("Its administration is at %s/admin/v1; the key for it is in %r.", url, str(key_path))
