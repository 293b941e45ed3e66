"""A PostgreSQL server of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

READY_S = 60


def find_postgres() -> Path | None:
    """Return the folder of the newest server's programs; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _let_others_through(folder: Path) -> None:
    """Let the server's own user reach its folder below those of root."""
    for parent in (folder, *folder.parents):
        if parent.owner() == "root" and os.geteuid() == 0 and parent != Path("/"):
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o011)


class PostgresServer:
    """A cluster in a folder of its own, whose server can be killed and started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        _let_others_through(folder)
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
