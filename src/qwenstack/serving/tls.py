"""The certificate and key that connections are encrypted with, read and checked before anything listens."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import NoReturn

from qwenstack.core.errors import ConfigError
from qwenstack.serving.config import ServeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What the files hold, in PEM."""

    cert: bytes
    """The server's certificate, and those between it and a root."""
    key: bytes = field(repr=False)
    """The private key."""


def read_tls(config: ServeConfig) -> TlsFiles | None:
    """Return what to encrypt with; None where connections are not encrypted.

    Raises:
        ConfigError: a file cannot be read, or the two do not belong together.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_refuse_password)
        return TlsFiles(cert=config.tls_cert.read_bytes(), key=config.tls_key.read_bytes())
    except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
        files = f"`tls_cert` {str(config.tls_cert)!r} and `tls_key` {str(config.tls_key)!r}"
        raise ConfigError(
            f"{files} cannot be used: {error}. Give a certificate and its key in PEM, the key without a password."
        ) from error


def _refuse_password() -> NoReturn:
    raise ValueError("the key has a password")
