"""How the administration is served."""

from __future__ import annotations

from dataclasses import replace

from qwenstack.serving.address import is_loopback_host
from qwenstack.serving.config import ServeConfig

MAX_BODY_BYTES = 64 * 1024
"""Far more than any act of an administrator takes."""


def admin_config(config: ServeConfig, *, host: str, port: int) -> ServeConfig:
    """Return how the administration is served beside a public server: no pages of other origins, and short bodies.

    Where no other machine comes in, there is nothing to encrypt, and none of the public server's names.
    """
    is_alone = is_loopback_host(host)
    return replace(
        config,
        host=host,
        port=port,
        grpc_port=None,
        tls_cert=None if is_alone else config.tls_cert,
        tls_key=None if is_alone else config.tls_key,
        allowed_hosts=() if is_alone else config.allowed_hosts,
        allowed_origins=(),
        static_dir=None,
        max_body_bytes=MAX_BODY_BYTES,
    )
