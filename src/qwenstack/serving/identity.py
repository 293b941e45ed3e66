"""Who is calling, what they may do, and the keys that say so."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from qwenstack.core.errors import ConfigError
from qwenstack.core.limits import NO_LIMITS, Limits
from qwenstack.core.scope import Scope
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.errors import HttpError
from qwenstack.serving.failure_log import log_failure
from qwenstack.storage import ApiKey, KeySnapshot


class Access(Enum):
    """What it takes to call a route: nothing, or a key with a scope of this name."""

    PUBLIC = "public"
    INFERENCE = "inference"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who is calling."""

    tenant: str = ""
    """Whose requests these are, to the engine and to everything that is kept; empty: of nobody in particular."""
    key_id: str = ""
    """The stored key that was shown, or `LOCAL_ADMIN`; empty: none of these."""
    subject: str = ""
    """Who it is to the identity provider whose token was shown; empty: none was."""
    accesses: frozenset[Access]
    models: frozenset[str] | None = None
    """Models that may be used; None: all."""
    limits: Limits = NO_LIMITS
    """What may be used; the server's own limits hold where there are none."""
    expires_at_s: float | None = field(default=None, compare=False)
    """Unix seconds until which the token that was shown is good; None: none was."""

    def may(self, access: Access) -> bool:
        """Whether a route that takes this is open."""
        return access is Access.PUBLIC or access in self.accesses

    @property
    def actor(self) -> str:
        """Who the audit log says it was; `-` for somebody without a name."""
        return self.key_id or (f"oidc:{self.subject}" if self.subject else "-")

    @property
    def account(self) -> str:
        """Whose use is counted together: that of a key, of a token's subject, or of all who have no name."""
        return self.actor if self.key_id or self.subject else f"tenant:{self.tenant}" if self.tenant else "anyone"

    @property
    def line(self) -> str:
        """In whose line the work waits: a tenant has one for all its keys, and the local administrator its own."""
        return f"tenant:{self.tenant}" if self.tenant else self.account

    @property
    def is_known(self) -> bool:
        """Whether somebody showed anything that says who it is."""
        return bool(self.key_id or self.tenant)


LOCAL_ADMIN = "local-admin"
"""In the place of a key's id: whoever may read the administration key's file on the server's own disk."""
_ALL_BUT_ADMIN = frozenset({Access.INFERENCE, Access.METRICS})
"""What everybody may where no key was ever made, and whoever has a configured key. Administration is never among it."""
STRANGER = Identity(accesses=frozenset())
"""Somebody who showed no key of ours."""


def accesses_of(scopes: Iterable[Scope]) -> frozenset[Access]:
    """Return what scopes open; nothing that needs none is among it."""
    return frozenset(Access(scope) for scope in scopes)


class KeyRing:
    """The keys that open the server: those of the configuration, those of the database, and the local administrator's.

    The last opens the administration and nothing else, and does not close the server to others.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        stored: KeySnapshot | None = None,
        *,
        admin_keys: Iterable[str] = (),
        is_closed: bool = False,
    ) -> None:
        """Keep of keys that are given as texts their digests alone; `is_closed` without any key, too."""
        self._digests = tuple(map(_digest, keys))
        self._admin_digests = tuple(map(_digest, admin_keys))
        self._is_closed = is_closed or bool(self._digests)
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
        digest = _digest(presented or "")
        if _is_among(digest, self._admin_digests) and presented is not None:
            return Identity(key_id=LOCAL_ADMIN, accesses=frozenset({Access.ADMIN}))
        if self.is_open:
            return Identity(accesses=_ALL_BUT_ADMIN)
        key = self._stored.find(presented or "", now_ms=now_ms)
        is_configured = _is_among(digest, self._digests)  # looked at in any case
        if key is not None:
            return _holder_of(key)
        if is_configured and presented is not None:
            return Identity(tenant=digest[:8].hex(), accesses=_ALL_BUT_ADMIN)  # a name that tells nothing of the key
        return STRANGER

    def holder(self, key_id: str, *, now_ms: float) -> Identity | None:
        """Return who holds the stored key of this id; None where it opens nothing any more."""
        key = self._stored.by_id(key_id, now_ms=now_ms)
        return None if key is None else _holder_of(key)

    def nameless(self, tenant: str) -> Identity | None:
        """Return who of this tenant shows no stored key: the holder of a configured one, or anybody at an open server.

        None where there is no such key any more, or the server is not open any more.
        """
        is_there = any(digest[:8].hex() == tenant for digest in self._digests) if tenant else self.is_open
        return Identity(tenant=tenant, accesses=_ALL_BUT_ADMIN) if is_there else None


_WHENCE = {Access.ADMIN: "The administrator's first key is in `admin.key`, in the server's folder for data."}
_WHENCE_OTHERS = "Whoever runs the server makes keys with `qwenstack keys create NAME`."


def refuse_caller(identity: Identity, access: Access) -> HttpError | None:
    """Return what to answer somebody who may not call what takes this; None where they may."""
    if identity.may(access):
        return None
    if not identity.is_known:
        return HttpError(
            401,
            f"This server needs a valid API key: send one as `Authorization: Bearer KEY` (or as `X-Api-Key`). One that "
            f"was sent is wrong, expired or revoked. {_WHENCE.get(access, _WHENCE_OTHERS)}",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return HttpError(
        403, f"This API key is not for this: it lacks the scope `{access.value}`.", code="insufficient_scope"
    )


def _holder_of(key: ApiKey) -> Identity:
    return Identity(
        tenant=key.tenant,
        key_id=key.id,
        accesses=accesses_of(key.scopes),
        models=key.models,
        limits=key.limits,
    )


class TokenReader(Protocol):
    """Says who shows a token of an identity provider."""

    async def identify(self, token: str) -> Identity:
        """Return who it is; a stranger where the token is not good."""
        ...

    async def close(self) -> None:
        """Close what is open to the provider."""
        ...


class Callers:
    """Who is calling: by a key, or else by a token."""

    def __init__(self, keys: KeyRing, tokens: TokenReader | None = None) -> None:
        """Ask the ring first; None: tokens open nothing."""
        self._keys = keys
        self._tokens = tokens

    async def identify(self, presented: str | None, *, now_ms: float, request_id: str) -> Identity:
        """Return who shows this key or token; where that cannot be found out, a stranger, whom the gates refuse."""
        try:
            identity = self._keys.identify(presented, now_ms=now_ms)
            if self._tokens is None or presented is None or identity != STRANGER:
                return identity
            return await self._tokens.identify(presented)
        except Exception as error:  # noqa: BLE001 - what a caller shows may not end a request outside of its gate
            log_failure(error, request_id)
            return STRANGER

    async def close(self) -> None:
        """Close what is open to an identity provider."""
        if self._tokens is not None:
            await self._tokens.close()


def _digest(presented: str) -> bytes:
    return hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()


def _is_among(digest: bytes, known: Sequence[bytes]) -> bool:
    matches = [hmac.compare_digest(digest, other) for other in known]  # all of them: no match ends the loop
    return any(matches)


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
