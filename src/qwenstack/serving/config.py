"""How the server is set up: one frozen value, checked before anything listens."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.sampling_params import SamplingParams

MIN_API_KEY_CHARS = 8

# What a model's own generation settings may say; the rest of `SamplingParams` belongs to the request.
_DEFAULT_SAMPLING_NAMES = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
)
_POSITIVE_NAMES = (
    "max_body_bytes",
    "body_timeout_s",
    "max_header_bytes",
    "header_timeout_s",
    "send_timeout_s",
    "keep_alive_timeout_s",
    "ping_interval_s",
    "shutdown_timeout_s",
    "retention_days",
    "max_response_bytes",
    "lease_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Where the server listens, whom it lets in, and what it answers with by default.

    Raises:
        ConfigError: a value is wrong; the message names it.
    """

    host: str = "127.0.0.1"
    """The address to listen on. Any but the loopback needs an API key."""
    port: int = 8000
    """The TCP port; 0 lets the system choose one."""
    grpc_port: int | None = None
    """The TCP port for gRPC; 0 lets the system choose one; None: no gRPC."""
    tls_cert: Path | None = None
    """The certificate to encrypt connections with, in PEM; None: they are not encrypted."""
    tls_key: Path | None = None
    """The private key of `tls_cert`, in PEM."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Clients send one, or a stored one, as `Authorization: Bearer KEY`. Where there is neither, any is accepted."""
    served_model_name: str | None = None
    """The model's name in the API, where it is not to be the engine's."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, besides those of this machine, that a `Host` header may carry, without the port."""
    allowed_origins: tuple[str, ...] = ()
    """Origins such as `https://chat.example.org` whose pages may use the API."""
    static_dir: Path | None = None
    """The built web page; None or a missing folder leaves the API alone."""
    default_sampling: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the model's makers recommend, by `SamplingParams` name; a request's own values come first."""
    max_body_bytes: int = 2 * 1024 * 1024
    """The longest request body."""
    body_timeout_s: float = 30.0
    """A client has this long to send its body."""
    max_header_bytes: int = 16 * 1024
    """The longest request line and headers together."""
    header_timeout_s: float = 10.0
    """A client has this long to send its headers."""
    send_timeout_s: float = 30.0
    """A client that does not take what is written for it, at least 1.6 KB a second, is cut after this long."""
    keep_alive_timeout_s: int = 30
    """An idle connection is kept this long."""
    ping_interval_s: float = 15.0
    """A stream that is silent this long sends a comment, so that nothing between closes it."""
    shutdown_timeout_s: int = 1
    """After a signal, open answers have this long to end before they are cut."""
    log_requests: bool = True
    """Whether each request gets a line in the log; failures of our own always do."""
    retention_days: int = 30
    """What tenants keep is removed after this long."""
    max_response_bytes: int = 1 << 30
    """A tenant's stored responses together; the oldest go first."""
    lease_s: float = 10.0
    """What a server was doing when it died is another's, or failed, so long after its last sign of life."""

    def __post_init__(self) -> None:
        """Check every value once."""
        for name, port in (("port", self.port), ("grpc_port", self.grpc_port)):
            if port is not None and not 0 <= port <= 65_535:
                raise ConfigError(f"`{name}` is {port!r}; it must be between 0 and 65535.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("`tls_cert` and `tls_key` need each other: give both files, or none.")
        for key in self.api_keys:
            if len(key) < MIN_API_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(
                    f"An API key has {len(key)} characters or signs that a header cannot carry; "
                    f"give at least {MIN_API_KEY_CHARS} printable ASCII characters without spaces."
                )
        self._check_names()
        for name in _POSITIVE_NAMES:
            if getattr(self, name) <= 0:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}; it must be above 0.")
        unknown = sorted(set(self.default_sampling) - _DEFAULT_SAMPLING_NAMES)
        if unknown:
            known = ", ".join(sorted(_DEFAULT_SAMPLING_NAMES))
            raise ConfigError(f"`default_sampling` has {unknown[0]!r}; it may have {known}.")
        _ = self.default_params

    def _check_names(self) -> None:
        for host in self.allowed_hosts:
            if not host or "/" in host or (":" in host and parse_address(host) is None):
                raise ConfigError(f"`allowed_hosts` has {host!r}; give the name alone, without scheme and port.")
        for origin in self.allowed_origins:
            scheme, separator, host = origin.partition("://")
            if scheme not in {"http", "https"} or not separator or not host or "/" in host:
                raise ConfigError(
                    f"`allowed_origins` has {origin!r}; give scheme, host and port alone, as `https://chat.example.org`."
                )

    @property
    def default_params(self) -> SamplingParams:
        """What a request gets that chooses nothing: the model's defaults, and as many tokens as the context leaves."""
        try:
            return replace(SamplingParams(max_tokens=None), **self.default_sampling)
        except RequestError as error:
            raise ConfigError(f"`default_sampling`: {error}") from error

    @property
    def scheme(self) -> str:
        """How addresses of the server begin."""
        return "http" if self.tls_cert is None else "https"

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        return is_loopback_host(self.host)


def is_loopback_host(host: str) -> bool:
    """Tell whether a host name or address means this machine alone."""
    if host.lower() == "localhost":
        return True
    address = parse_address(host)
    return address is not None and address.is_loopback


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an IP address, with or without IPv6's brackets; None where it is a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
