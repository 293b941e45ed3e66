"""A Python process of ours beside the server: how it is started, what it is told of the environment, how it ends.

It talks over a socket whose other end we hold: when that closes, be it that we were killed, it ends too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_STOP_TIMEOUT_S = 1.0
_SECRETS = frozenset({"QWENSTACK_API_KEYS", "QWENSTACK_API_KEY", "OPENAI_API_KEY", "QWENSTACK_STORAGE_URL", "HF_TOKEN"})
"""What a worker has no use for."""


async def spawn_worker(
    module: str,
    *,
    pass_fds: Sequence[int] = (),
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Process, socket.socket]:
    """Start `python -m module SOCKET FD… ARGUMENT…` and return it with our end of its socket, which does not block.

    Args:
        module: what to run.
        pass_fds: further descriptors that it inherits, told to it by number behind the socket's.
        arguments: what else it is told.
        environment: variables beside our own.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        descriptors = [theirs.fileno(), *pass_fds]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the folder where the server was started is not a place to import from
                "-m",
                module,
                *map(str, descriptors),
                *arguments,
                pass_fds=descriptors,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and signals to the group are the server's; it ends us in order
                env={**_own_environment(), **environment},
            )
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)
    return process, ours


async def stop_worker(process: Process, connection: asyncio.StreamWriter | asyncio.WriteTransport) -> None:
    """End a worker: closing the connection tells it; one that does not listen is killed."""
    connection.close()
    try:
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def cause_of_death(process: Process) -> str:
    """Return what the system says of a process that ended."""
    code = process.returncode or 0
    if code == -signal.SIGKILL:
        return "killed, perhaps because memory ran out"
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _own_environment() -> dict[str, str]:
    """Return our environment without its secrets, and the import path that found us."""
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
