"""The whole server over a tiny model: HTTP, gRPC, the engine and the embedding model in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qwenstack.engine import EngineConfig
from qwenstack.engine.client import EngineClient
from qwenstack.retrieval import e5_embedder
from qwenstack.serving import ServeConfig, create_app, open_socket, serve_app
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf


@asynccontextmanager
async def running_engine(folder: Path) -> AsyncGenerator[tuple[EngineClient, str]]:
    """The whole server, with both of its models; yields the engine and the address."""
    path = write_tiny_gguf(folder / "tiny.gguf", QWEN3_Q8)
    client = await EngineClient.start(
        EngineConfig(model_path=path, model_name="tiny", num_threads=1, max_model_len=1024, prefix_cache_disk_bytes=0)
    )
    config = ServeConfig(port=0, grpc_port=0)
    embedder = e5_embedder(num_threads=1)
    app = create_app(client, config, embedder=embedder)
    urls: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_app(app, config, listener=open_socket(config), on_ready=urls.set_result))
    try:
        yield client, (await urls)[1].removeprefix("grpc://")
    finally:
        app.state.lifetime.stop()
        await serving
        await embedder.close()
        await client.close()
