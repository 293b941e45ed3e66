"""Where the server is and who calls: from arguments, else from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import httpx

from qwenstack.core.errors import ConfigError

DEFAULT_TIMEOUT_S = 600.0
"""A long answer that is not streamed takes minutes on a small machine."""
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One of a server's two applications: where the environment tells of it, and where it is if that is silent."""

    url_names: tuple[str, ...]
    key_names: tuple[str, ...]
    default_url: str


PUBLIC = Door(
    url_names=("QWENSTACK_BASE_URL", "OPENAI_BASE_URL"),
    key_names=("QWENSTACK_API_KEY", "OPENAI_API_KEY"),
    default_url="http://127.0.0.1:8000",
)
ADMINISTRATION = Door(
    url_names=("QWENSTACK_ADMIN_URL",), key_names=("QWENSTACK_ADMIN_KEY",), default_url="http://127.0.0.1:8001"
)
"""Has names of its own, so that neither key goes through the other's door."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Whom to ask, and as whom."""

    base_url: str
    """The server's root; a `/v1` at its end, as OpenAI's clients have it, is left out."""
    api_key: str | None = field(repr=False)
    timeout_s: float

    @classmethod
    def read(
        cls,
        environ: Mapping[str, str],
        *,
        door: Door = PUBLIC,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> ClientConfig:
        """Take what is given, and the rest from the environment.

        Raises:
            ConfigError: an address or a key cannot be one.
        """
        address = (base_url or _first(environ, door.url_names) or door.default_url).rstrip("/").removesuffix("/v1")
        key = api_key or _first(environ, door.key_names)
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"`base_url` is {address[:200]!r}; it must begin with http:// or https://.")
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError("`api_key` has signs that a header cannot carry; give it as it was printed.")
        if timeout_s <= 0:
            raise ConfigError(f"`timeout_s` is {timeout_s!r}; it must be above 0.")
        return cls(base_url=address, api_key=key, timeout_s=timeout_s)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        known = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {**known, "User-Agent": f"qwenstack-python/{version('qwenstack')}"}

    @property
    def timeout(self) -> httpx.Timeout:
        """How long each part of an exchange may take."""
        return httpx.Timeout(self.timeout_s, connect=min(_CONNECT_TIMEOUT_S, self.timeout_s))


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)
