"""A server and all its processes listen where they were told to, and nowhere else."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/unix")

READY_TIMEOUT_S = 120
WITHIN_S = 30
IS_LISTENING = 0x10000
"""Of the flags in `/proc/net/unix`: `__SO_ACCEPTON` in the kernel's `include/linux/net.h`."""
ADDRESS = re.compile(r"(?:https?://|gRPC at )(127\.0\.0\.1|\[::1\]):(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Where processes can be reached from outside."""

    inet: frozenset[tuple[str, int]]
    """Addresses and ports that take connections, or datagrams from anybody."""
    unix: frozenset[str]
    """Paths that take connections; an abstract one begins with @, one without a name is its inode."""


def family_of(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def open_sockets(pids: Sequence[int]) -> Open:
    """Return where these processes can be reached."""
    inet: set[tuple[str, int]] = set()
    unix: set[str] = set()
    for pid in pids:
        for connection in cast("Any", psutil.Process(pid)).net_connections(kind="inet"):
            is_server = connection.status == "LISTEN" or (connection.type == socket.SOCK_DGRAM and not connection.raddr)
            if is_server and connection.laddr:
                inet.add((plain(connection.laddr.ip), connection.laddr.port))
        held = inodes_of(pid)
        for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
            _, _, _, flags, _, _, inode, *path = line.split(maxsplit=7)
            if inode in held and int(flags, 16) & IS_LISTENING:
                unix.add(path[0] if path else inode)
    return Open(inet=frozenset(inet), unix=frozenset(unix))


def plain(host: str) -> str:
    """Write an address as people do: gRPC's sockets are of IPv6, and say ::ffff:127.0.0.1."""
    address = ip_address(host)
    return str(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else host


def inodes_of(pid: int) -> set[str]:
    """Return the sockets that a process holds."""
    links: set[str] = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.add(str(descriptor.readlink()))
        except OSError:  # closed since
            continue
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}


@dataclass(slots=True)
class Running:
    """A server that runs, with what it says of itself."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def told(self) -> frozenset[tuple[str, int]]:
        """The addresses that it announced."""
        return frozenset((host.strip("[]"), int(port)) for line in self.lines for host, port in ADDRESS.findall(line))

    def read(self) -> None:
        """Keep what it writes, until it ends."""
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def url(self, word: str) -> str:
        """Return the address in the line with this word."""
        (line,) = [line for line in self.lines if word in line]
        found = re.search(r"https?://[\d.]+:\d+", line)
        assert found is not None
        return found[0]


@pytest.fixture(scope="module", params=[True, False], ids=["with gRPC", "without gRPC"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`qwenstack serve` with everything that it can start beside it: administration, engine, embedding model."""
    folder = tmp_path_factory.mktemp("server")
    model = write_tiny_gguf(folder / "tiny.gguf", QWEN3_Q8)
    command = [sys.executable, "-m", "qwenstack", "serve", str(model), "--port", "0", "--num-threads", "1"]
    command += ["--set", "server.admin_port=0", "--set", f"storage.url=sqlite:///{folder / 'q.db'}"]
    command += ["--grpc-port", "0"] if request.param else []
    homes = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | homes) as process:
        running = Running(process)
        reader = threading.Thread(target=running.read)
        reader.start()
        try:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while len(running.told) < (3 if request.param else 2):
                assert process.poll() is None, running.lines
                assert time.monotonic() < deadline, running.lines
                time.sleep(0.1)
            yield running
        finally:
            process.terminate()
            process.wait(20)
            reader.join(20)


def use_all_of_it(server: Running) -> None:
    """Ask for what starts the processes that are started when first needed."""
    with httpx.Client(base_url=server.url("Ctrl-C"), timeout=120) as client:
        asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
        assert client.post("/v1/chat/completions", json=asked | {"response_format": schema}).status_code == 200
        assert client.post("/v1/embeddings", json={"model": "default", "input": "x"}).status_code == 200


def test_sec_27_the_server_and_its_processes_listen_where_they_were_told_to_and_nowhere_else(server: Running) -> None:
    use_all_of_it(server)
    family = family_of(server.process.pid)
    modules = {word for process in family for word in process.cmdline() if word.startswith("qwenstack")}
    assert modules >= {"qwenstack.engine.worker", "qwenstack.retrieval.worker", "qwenstack.engine.grammar.checker"}
    found = open_sockets([process.pid for process in family])
    assert found.inet == server.told
    assert found.unix == frozenset()
    assert all(ip_address(host).is_loopback for host, _ in found.inet)


def test_sec_27_the_processes_beside_the_server_have_no_socket_with_an_address(server: Running) -> None:
    use_all_of_it(server)
    for process in family_of(server.process.pid)[1:]:
        assert cast("Any", process).net_connections(kind="inet") == [], process.cmdline()
        held = inodes_of(process.pid)
        for line in Path(f"/proc/{process.pid}/net/unix").read_text().splitlines()[1:]:
            columns = line.split()
            assert columns[6] not in held or len(columns) == 7, line  # the eighth is an address


LISTENERS = """
import socket, sys, time
sockets = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("0.0.0.0", 0))]
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
for path in sys.argv[1:]:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path.replace("@", chr(0)))
    unix.listen()
    sockets.append(unix)
pair = socket.socketpair()
client = socket.create_connection(sockets[0].getsockname())
print(*(each.getsockname()[1] for each in [*sockets[:2], datagrams]), flush=True)
time.sleep(600)
"""


def test_a_process_that_listens_elsewhere_is_found(tmp_path: Path) -> None:
    paths = [str(tmp_path / "s"), f"@{tmp_path.name}-{os.getpid()}"]
    with subprocess.Popen([sys.executable, "-c", LISTENERS, *paths], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            first, second, third = map(int, process.stdout.readline().split())
            found = open_sockets([process.pid])
        finally:
            process.kill()
    assert found.inet == {("127.0.0.1", first), ("0.0.0.0", second), ("127.0.0.1", third)}
    assert found.unix == set(paths)
