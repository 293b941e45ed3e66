"""How the server is set up: one frozen value, checked before anything listens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.limits import NO_LIMITS, Limits
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.serving.address import is_loopback_host, parse_address
from qwenstack.serving.oidc_config import OidcConfig

MIN_API_KEY_CHARS = 8
MIN_KEY_SIGNS = 4
"""Different ones; of keys of 32 random hexadecimal digits, 3 in 10^21 have fewer."""
_EXAMPLE_KEYS = frozenset(
    {
        *("changeme", "changemenow", "changethis", "pleasechangeme", "replaceme", "replacethis", "default", "example"),
        *(
            "devsecretchangeme",
            "devsecret",
            "supersecret",
            "mysecret",
            "mysecretkey",
            "secretkey",
            "secret",
            "topsecret",
        ),
        *("password", "password1", "password123", "passw0rd", "letmein", "letmeinnow", "welcome1", "qwerty123"),
        *("qwertyuiop", "admin123", "administrator", "adminadmin", "adminpassword", "rootroot", "testtest", "test1234"),
        *("apikey", "myapikey", "yourapikey", "yourapikeyhere", "insertapikeyhere", "yoursecretkey", "tokenabc123"),
        *("1234567890", "0123456789", "12345678910", "123456789a", "11223344", "deadbeef", "qwenstack", "qwenstackkey"),
        *(
            "skyourapikey",
            "skyourkey",
            "sktest",
            "sk1234567890",
            "sk12345678",
            "skxxxxxxxx",
            "skchangeme",
            "none",
            "any",
        ),
    }
)
"""Without signs between the words: keys of examples and of other products' defaults (Flowise, PraisonAI, Dify)."""

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
    "max_upload_bytes",
    "upload_timeout_s",
    "max_files_bytes",
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
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    """Keys of the administration, which open nothing else. They are made, not chosen."""
    oidc: OidcConfig | None = None
    """Whose signed tokens open the server beside keys; None: nobody's."""
    adapters_folder: Path | None = None
    """Administrators may load LoRA adapters from below it; None: from nowhere."""
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
    limits: Limits = NO_LIMITS
    """What a caller may use whose key says nothing else."""
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
    files_dir: Path | None = None
    """Where the contents of files are; None: beside a SQLite database, and with PostgreSQL no files are kept."""
    max_upload_bytes: int = 200 * 1024 * 1024
    """The longest file."""
    upload_timeout_s: float = 600.0
    """A client has this long to send a file."""
    max_files_bytes: int = 10 << 30
    """A tenant's files together."""
    lease_s: float = 10.0
    """What a server was doing when it died is another's, or failed, so long after its last sign of life."""

    def __post_init__(self) -> None:
        """Check every value once."""
        for name, port in (("port", self.port), ("grpc_port", self.grpc_port)):
            if port is not None and not 0 <= port <= 65_535:
                raise ConfigError(f"`{name}` is {port!r}; it must be between 0 and 65535.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("`tls_cert` and `tls_key` need each other: give both files, or none.")
        if self.adapters_folder is not None and not self.adapters_folder.is_dir():
            raise ConfigError(f"`adapters.folder` is {str(self.adapters_folder)!r}, which is no folder.")
        _check_keys(self.api_keys)
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


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if len(key) < MIN_API_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"An API key has {len(key)} characters or signs that a header cannot carry; "
                f"give at least {MIN_API_KEY_CHARS} printable ASCII characters without spaces."
            )
        if is_guessable(key):
            raise ConfigError(
                "An API key is one of those that everybody tries first. Make one that nobody knows, such as "
                "`qwenstack keys create NAME` or `openssl rand -hex 32` does."
            )


def is_guessable(key: str) -> bool:
    """Tell whether a key is a word from an example, a row of neighbouring signs, or little but repetition."""
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    steps = {ord(after) - ord(before) for before, after in pairwise(plain)}
    is_row = len(plain) >= MIN_API_KEY_CHARS and len(steps) == 1
    return plain in _EXAMPLE_KEYS or len(set(key)) < MIN_KEY_SIGNS or is_row
