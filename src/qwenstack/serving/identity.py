"""Who is calling, what they may do, and the keys that say so."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from qwenstack.core.errors import ConfigError
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.errors import HttpError
from qwenstack.storage import KeySnapshot


class Access(Enum):
    """What it takes to call a route: nothing, or a key with a scope of this name."""

    PUBLIC = "public"
    INFERENCE = "inference"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who is calling."""

    tenant: str = ""
    """Whose requests these are, to the engine and to everything that is kept; empty: of nobody in particular."""
    key_id: str = ""
    """The stored key that was shown; empty: none was."""
    accesses: frozenset[Access]
    models: frozenset[str] | None = None
    """Models that may be used; None: all."""

    def may(self, access: Access) -> bool:
        """Whether a route that takes this is open."""
        return access is Access.PUBLIC or access in self.accesses


_EVERYTHING = frozenset({Access.INFERENCE, Access.METRICS})
STRANGER = Identity(accesses=frozenset())
"""Somebody who showed no key of ours."""


class KeyRing:
    """The keys that open the server: those of the configuration and those of the database."""

    def __init__(self, keys: Iterable[str] = (), stored: KeySnapshot | None = None) -> None:
        """Keep of configured keys their digests alone."""
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
        self._is_closed = bool(self._digests)
        self.take(stored or KeySnapshot({}, revision=0))

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a key, because none was ever made.

        A key that was revoked closes the server too, and what is closed stays so, whatever becomes of the database.
        """
        return not self._is_closed

    @property
    def revision(self) -> int:
        """Which state of the database the stored keys are of."""
        return self._stored.revision

    def take(self, stored: KeySnapshot) -> None:
        """Use these stored keys from now on."""
        self._stored = stored
        self._is_closed = self._is_closed or len(stored) > 0 or stored.revision > 0

    def identify(self, presented: str | None, *, now_ms: float) -> Identity:
        """Return who shows this key.

        Neither the time of a stored key's check nor that of a configured one tells how much of it was right.
        """
        if self.is_open:
            return Identity(accesses=_EVERYTHING)
        key = self._stored.find(presented or "", now_ms=now_ms)
        # A missing key is compared as well, and no match ends the loop.
        digest = hashlib.sha256((presented or "").encode("utf-8", "surrogatepass")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if key is not None:
            accesses = frozenset(access for access in _EVERYTHING if access.value in key.scopes)
            return Identity(tenant=key.tenant, key_id=key.id, accesses=accesses, models=key.models)
        if any(matches) and presented is not None:
            return Identity(tenant=digest[:8].hex(), accesses=_EVERYTHING)  # a name that tells nothing of the key
        return STRANGER


def refuse_caller(identity: Identity, access: Access) -> HttpError | None:
    """Return what to answer somebody who may not call what takes this; None where they may."""
    if identity.may(access):
        return None
    if identity == STRANGER:
        return HttpError(
            401,
            "This server needs an API key: send it as `Authorization: Bearer KEY` (or as `X-Api-Key`).",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return HttpError(
        403, f"This API key is not for this: it lacks the scope `{access.value}`.", code="insufficient_scope"
    )


def check_binding(config: ServeConfig, keys: KeyRing) -> None:
    """Refuse to open an unprotected server to other machines.

    Raises:
        ConfigError: the host can be reached from outside and no API key was ever made.
    """
    if not config.is_loopback and keys.is_open:
        raise ConfigError(
            f"Other machines can reach host {config.host!r}, and there is no API key, so anyone could use the model. "
            "Make one with `qwenstack keys create NAME`, set one (`--api-key` or `QWENSTACK_API_KEYS`), or listen on "
            "127.0.0.1."
        )
