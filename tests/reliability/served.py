"""The server under test, as a process: the real application over the engine that was asked for.

`python -m reliability.served OPTIONS` prints its address as soon as it answers, and behind it the administration's
where one is asked for. Each line on standard input is a question about its inside; the answer is one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serving"))

from toy_embedder import ToyEmbedder
from toy_llm import ToyLLM

from qwenstack.core.heap import keep_what_is_here
from qwenstack.core.protocols import AsyncLLM
from qwenstack.engine import EngineConfig
from qwenstack.engine.client import EngineClient
from qwenstack.serving import (
    Door,
    ServeConfig,
    admin_config,
    create_admin_app,
    create_app,
    open_socket,
    serve_app,
)
from qwenstack.storage import open_database
from reliability.clocked_llm import ClockedLLM

EDGE_ID = b"x-edge-id"
"""What nginx calls a request, where one stands before the server."""


class Witness:
    """Outermost: notes each request as the application is given it, where the question is what was understood."""

    def __init__(self, app: ASGIApp, *, seen: list[dict[str, Any]]) -> None:
        self._app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        query = scope["query_string"]
        target = (scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1")
        edge_id = dict(scope["headers"]).get(EDGE_ID, b"").decode("latin-1")
        note = {
            "client": scope["client"][0],
            "method": scope["method"],
            "target": target,
            "body": "",
            "edge_id": edge_id,
        }
        self._seen.append(note)

        async def receive_and_note() -> Message:
            message = await receive()
            note["body"] += message.get("body", b"").decode("latin-1")
            return message

        await self._app(scope, receive_and_note, send)


@contextlib.asynccontextmanager
async def engine(options: dict[str, Any]) -> AsyncGenerator[AsyncLLM]:
    """Start the engine that the options name."""
    if options["engine"] == "stub":
        yield ClockedLLM(**options["engine_options"])
        return
    if options["engine"] == "toy":
        yield ToyLLM(**options["engine_options"])
        return
    config = options["engine_options"]
    client = await EngineClient.start(EngineConfig(**config | {"model_path": Path(config["model_path"])}))
    try:
        yield client
    finally:
        await client.close()


def count_sockets() -> int:
    """Count open sockets; files are another matter: SQLite opens them as its threads need them."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(descriptor.readlink()).startswith("socket:")
    return count


async def census(llm: AsyncLLM, seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Count what the process holds."""
    stats = await llm.stats()
    requests = list(seen)
    seen.clear()
    return {
        "tasks": len(asyncio.all_tasks()),
        "sockets": count_sockets(),
        "resident_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(),
        "open_answers": stats.num_requests_running + stats.num_requests_waiting,
        "blocks_held": stats.num_blocks_total - stats.num_blocks_free,
        "engine_pid": getattr(llm, "pid", os.getpid()),
        "seen": requests,
    }


async def answer_questions(llm: AsyncLLM, seen: list[dict[str, Any]]) -> None:
    """Answer until standard input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(await census(llm, seen)), flush=True)


def administration_of(app: FastAPI, config: ServeConfig) -> Door:
    """Make the administration at a free port, which takes connections at once and answers when it serves."""
    config = admin_config(config, host="127.0.0.1", port=0)
    return Door(app=create_admin_app(app, config), config=config, listener=open_socket(config))


def url_of(door: Door) -> str:
    """Return where it is reached."""
    return f"http://127.0.0.1:{door.listener.getsockname()[1]}"


async def serve(options: dict[str, Any]) -> None:
    """Serve until a signal."""
    given: dict[str, Any] = options["server_options"]
    folder = given.pop("adapters_folder", None)
    admin_key: str = options["admin_key"]
    config = ServeConfig(
        port=0,
        admin_keys=(admin_key,) if admin_key else (),
        adapters_folder=None if folder is None else Path(folder),
        **given,
    )
    seen: list[dict[str, Any]] = []
    opened = contextlib.closing(open_database(options["database"]))
    with contextlib.closing(open_socket(config)) as listener, opened as database, contextlib.ExitStack() as stack:
        async with engine(options) as llm:
            embedder = ToyEmbedder() if options["engine"] == "toy" else None
            app = create_app(llm, config, database=database, embedder=embedder)
            if options["notes_requests"]:
                app.gate = Witness(app.gate, seen=seen)
            administration = administration_of(app, config) if admin_key else None
            if administration is not None:
                stack.callback(administration.listener.close)
            beside = [] if administration is None else [url_of(administration)]
            keep_what_is_here()
            questions = asyncio.create_task(answer_questions(llm, seen))
            await serve_app(
                app,
                config,
                listener=listener,
                on_ready=lambda urls: print(urls[0], *beside, flush=True),
                administration=administration,
            )
            questions.cancel()


if __name__ == "__main__":
    uvloop.run(serve(json.loads(sys.argv[1])))
