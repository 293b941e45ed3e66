"""Debian's nginx before the server under test, with the project's own configuration."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from reliability.server import Server
from reliability.verdict import RowSkipped

READY_TIMEOUT_S = 20
SITE = Path(__file__).parents[2] / "deploy" / "nginx.conf"
LOG_FORMAT = 'log_format passed_on "$request_id $upstream_addr";'


@dataclass(slots=True, kw_only=True)
class Nginx:
    """An nginx that runs."""

    host: str
    port: int
    folder: Path
    _num_read: int = field(default=0)

    def passed_on(self) -> list[str]:
        """Return the ids of the requests that it sent to the server since the last call."""
        lines = (self.folder / "passed_on.log").read_text(errors="replace").splitlines()
        new, self._num_read = lines[self._num_read :], len(lines)
        return [request_id for request_id, upstream in (line.split(" ", 1) for line in new) if upstream != "-"]


def find_nginx() -> str:
    """Return where the program is.

    Raises:
        RowSkipped: it is not installed.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise RowSkipped("no nginx here; Debian's package is `nginx`")
    return program


@contextlib.asynccontextmanager
async def nginx_before(server: Server, *, tls: bool = False) -> AsyncGenerator[Nginx]:
    """Run nginx with `deploy/nginx.conf` before a server until the block ends.

    Raises:
        RowSkipped: it is not installed.
    """
    program = find_nginx()
    with tempfile.TemporaryDirectory(prefix="qwenstack-nginx-") as name:
        folder, port = Path(name), free_port()
        write_configuration(folder, server=server, port=port, tls=tls)
        command = [program, "-p", name, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
        try:
            await _wait_for("127.0.0.1", port)
            yield Nginx(host="127.0.0.1", port=port, folder=folder)
        finally:
            process.terminate()
            await process.wait()


def free_port() -> int:
    """Return a port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_configuration(folder: Path, *, server: Server, port: int, tls: bool) -> None:
    """Write the project's site with the addresses of a test, and the frame that Debian has around it."""
    site = SITE.read_text()
    for ours, tests in (
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port}{' ssl http2' if tls else ''};"),
        ("server 127.0.0.1:8000;", f"server {server.host}:{server.port};"),
        ("server_name chat.example.org;", "server_name localhost;"),
        ("proxy_set_header Host $host;", "proxy_set_header Host $host; proxy_set_header X-Edge-Id $request_id;"),
        ("/etc/ssl/qwenstack/", f"{folder}/"),
    ):
        assert ours in site
        site = site.replace(ours, tests)
    if tls:
        make_certificate(folder)
    else:
        site = "\n".join(line for line in site.splitlines() if not line.strip().startswith("ssl_"))
    (folder / "site.conf").write_text(site)
    paths = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nevents {{ worker_connections 2048; }}\n"
        f"http {{\n{paths}\n    {LOG_FORMAT}\n    access_log {folder}/passed_on.log passed_on;\n"
        f"    include {folder}/site.conf;\n}}\n"
    )


def make_certificate(folder: Path) -> None:
    """Make a certificate for `localhost` that signs itself.

    Raises:
        RowSkipped: openssl is not installed.
    """
    program = shutil.which("openssl")
    if program is None:
        raise RowSkipped("no openssl here; Debian's package is `openssl`")
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run(command, check=True, capture_output=True)


async def _wait_for(host: str, port: int) -> None:
    deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("nginx does not answer")
