"""Databases to try things on: a SQLite file, and a PostgreSQL server of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

READY_S = 60


class PostgresServer:
    """A cluster in a folder of its own, whose server can be killed and started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        # PostgreSQL refuses to run as root.
        self.prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.prefix:
            shutil.chown(folder, "postgres", "postgres")
        self.run("initdb", "-D", folder / "cluster", "-U", "postgres", "-A", "trust", "--no-instructions")

    def run(self, program: str, *arguments: object) -> None:
        command = [*self.prefix, str(self.binaries / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        """Start it; after a kill, as soon as the last child has noticed."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self._start()
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def _start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        log = self.folder / "log"
        self.run("pg_ctl", "-D", self.folder / "cluster", "-l", log, "-w", "-t", READY_S, "-o", options, "start")

    def kill(self) -> None:
        """End the postmaster as a power cut would; its children notice and end too."""
        pid = int((self.folder / "cluster" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run("pg_ctl", "-D", self.folder / "cluster", "-m", "immediate", "-w", "stop")


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that runs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server here; Debian's package is `postgresql`")
    folder = tmp_path_factory.mktemp("postgres")
    for parent in (folder, *folder.parents):
        if parent.owner() == "root" and os.geteuid() == 0 and parent != Path("/"):
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o011)
    server = PostgresServer(found[-1].parent, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
