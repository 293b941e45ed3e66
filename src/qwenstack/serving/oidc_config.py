"""Whose tokens count, and what in them means what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from qwenstack.core.errors import ConfigError
from qwenstack.core.scope import DEFAULT_ROLES, SCOPES, Scope
from qwenstack.serving.address import is_loopback_host


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcConfig:
    """How tokens of one issuer are read.

    Raises:
        ConfigError: a value is wrong; the message names it.
    """

    issuer: str
    """As tokens have it in `iss`, sign for sign."""
    audience: str
    """What tokens for this server have in `aud`."""
    jwks_url: str | None = None
    """Where the issuer's public keys are; None: where `ISSUER/.well-known/openid-configuration` says."""
    tenant_claim: str = "sub"
    """Whose requests they are. It must be nothing that users choose for themselves."""
    scopes_claim: str = "scope"
    """What somebody may: words with spaces between, or a list. `a.b` is `b` within `a`."""
    models_claim: str | None = None
    """A list of the models that may be used; None: all."""
    roles: tuple[str, ...] = DEFAULT_ROLES
    """Which word of the scopes claim gives which scope, each as WORD=SCOPE."""

    def __post_init__(self) -> None:
        """Check every value once."""
        for name in ("issuer", "jwks_url"):
            url: str | None = getattr(self, name)
            if url is not None and not is_trustworthy(url):
                raise ConfigError(f"`oidc.{name}` is {url!r}; give an `https://` address (`http://` on this machine).")
        for name in ("audience", "tenant_claim", "scopes_claim"):
            if not getattr(self, name):
                raise ConfigError(f"`oidc.{name}` is empty.")
        _ = self.scopes_by_word

    @property
    def scopes_by_word(self) -> Mapping[str, Scope]:
        """What each word of the scopes claim gives."""
        found: dict[str, Scope] = {}
        for role in self.roles:
            word, _, name = role.rpartition("=")
            scope: Scope | None = next((scope for scope in SCOPES if scope == name), None)
            if not word or scope is None:
                raise ConfigError(f"`oidc.roles` has {role!r}; write WORD=SCOPE with a scope of {', '.join(SCOPES)}.")
            if found.setdefault(word, scope) != scope:
                raise ConfigError(f"`oidc.roles` gives {word!r} two scopes; a word gives one.")
        return found


def is_trustworthy(url: str) -> bool:
    """Tell whether what comes from an address is what its owner sent: TLS, or this machine itself."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback_host(host))
