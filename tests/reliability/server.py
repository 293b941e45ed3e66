"""Starts the server under test, and asks it about its inside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack.storage import ApiKeys, AuditLog, open_database

TESTS = Path(__file__).parents[1]
START_TIMEOUT_S = 180
MOST_DESCRIPTORS = 8192
ADMIN_KEY = "qsa-the-key-of-the-file-on-this-machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is reached."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Server(Address):
    """A server process that runs."""

    keys: Mapping[str, str]
    """API keys by tenant."""
    folder: Path
    """Has the server's database and log."""
    process: asyncio.subprocess.Process
    admin_port: int | None = None
    """Where its administration is; None: it has none."""

    @property
    def administration(self) -> Server:
        """The same process by its other door, with the key for it, which is in no database and cannot be revoked."""
        assert self.admin_port is not None
        return replace(self, port=self.admin_port, keys={"administrator": ADMIN_KEY}, admin_port=None)

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://{self.host}:{self.port}"

    @property
    def key(self) -> str:
        """The first tenant's key."""
        return next(iter(self.keys.values()))

    @property
    def log(self) -> str:
        """What the server wrote to standard error."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.returncode is None

    async def census(self) -> dict[str, Any]:
        """Return what the process holds at this moment."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        return json.loads(line)

    def num_audited(self) -> int:
        """Count the entries of the audit log, and prove their chain."""
        database = open_database(f"sqlite:///{self.folder / 'q.db'}")
        with contextlib.closing(database):
            result = AuditLog(database).verify()
        assert result.broken_at is None
        return result.num_entries


@contextlib.asynccontextmanager
async def serving(
    *,
    engine: str = "stub",
    engine_options: Mapping[str, Any] | None = None,
    server_options: Mapping[str, Any] | None = None,
    tenants: Sequence[str] = ("a",),
    notes_requests: bool = False,
    has_administration: bool = False,
) -> AsyncGenerator[Server]:
    """Run a server with keys for these tenants, a database and an audit log, until the block ends."""
    allow_many_connections()
    with tempfile.TemporaryDirectory(prefix="qwenstack-reliability-") as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'q.db'}"
        with contextlib.closing(open_database(url)) as database:
            keys = {tenant: ApiKeys(database).create(name=tenant, tenant=tenant, actor="t").text for tenant in tenants}
        options = {
            "engine": engine,
            "engine_options": dict(engine_options or {}),
            "server_options": dict(server_options or {}),
            "database": url,
            "notes_requests": notes_requests,
            "admin_key": ADMIN_KEY if has_administration else "",
        }
        if engine == "tiny":
            options["engine_options"] |= {"model_path": str(write_tiny_gguf(folder / "tiny.gguf", QWEN3_Q8))}
        process = await _start(options, folder)
        try:
            line = await asyncio.wait_for(_read_line(process), START_TIMEOUT_S)
            hosts, ports = zip(*(url.removeprefix("http://").split(":") for url in line.split()), strict=True)
            port, admin_port = int(ports[0]), int(ports[1]) if has_administration else None
            yield Server(host=hosts[0], port=port, keys=keys, folder=folder, process=process, admin_port=admin_port)
        finally:
            await _stop(process)


def allow_many_connections() -> None:
    """Let this process and those that it starts have thousands of sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MOST_DESCRIPTORS <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_DESCRIPTORS, hard))


async def _start(options: Mapping[str, Any], folder: Path) -> asyncio.subprocess.Process:
    with (folder / "log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "reliability.served",
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=1 << 30,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        )


async def _read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 20)
    except TimeoutError:
        process.kill()
        await process.wait()
