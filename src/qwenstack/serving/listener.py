"""Takes ports, before anything long begins."""

from __future__ import annotations

import errno
import importlib
import socket

from qwenstack.core.errors import ConfigError
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.tls import read_tls

_SEND_BUFFER_BYTES = 1 << 18
"""Of a connection in the kernel, which else lets it grow to 4 MB for a client that does not read (Linux `tcp_wmem`);
2.5 MB a second over a round trip of 100 ms."""


def open_socket(config: ServeConfig) -> socket.socket:
    """Take the port, so that a taken one is told before a model is loaded; what gRPC and TLS need is checked too.

    Raises:
        ConfigError: the host is unknown, a port is taken or not permitted, or the TLS files cannot be used.
        MissingExtraError: gRPC is wanted and not installed.
    """
    read_tls(config)
    if config.grpc_port is not None:
        importlib.import_module("qwenstack.serving.grpc")
        # gRPC's library takes its port by itself, and later.
        _open_port(config.host, config.grpc_port, flag="--grpc-port").close()
    return _open_port(config.host, config.port, flag="--port")


def _open_port(host: str, port: int, *, flag: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"Host {host!r} is not an address of this machine ({error.strerror}). Use `--host`."
        ) from error
    # `localhost` is both ::1 and 127.0.0.1; every program tries the second.
    family, kind, protocol, _, address = min(found, key=lambda info: info[0] is not socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(_explain_bind_error(error, host, port, flag=flag)) from error
    return listener


def _explain_bind_error(error: OSError, host: str, port: int, *, flag: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"Port {port} on {host} is taken. Stop what uses it, or choose another with `{flag}`."
        case errno.EACCES | errno.EPERM:
            return f"Port {port} needs rights that this user does not have. Choose one above 1023 with `{flag}`."
        case errno.EADDRNOTAVAIL:
            return f"Host {host!r} is not an address of this machine. Use `--host 127.0.0.1`."
        case _:
            return f"Cannot listen on {host}:{port}: {error.strerror}. Change `--host` or `{flag}`."
