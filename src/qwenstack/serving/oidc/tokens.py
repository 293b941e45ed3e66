"""From a signed token to an identity: the signature, for whom it is, since when and until when, and what it allows."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import jwt

from qwenstack.serving.identity import STRANGER, Identity, accesses_of
from qwenstack.serving.oidc.key_set import ALGORITHMS, MAX_KEY_ID_CHARS, KeySet, SigningKey
from qwenstack.serving.oidc_config import OidcConfig
from qwenstack.storage import is_tenant_name

logger = logging.getLogger(__name__)

LEEWAY_S = 60.0
"""Clocks of two machines may differ by this."""
MAX_TOKEN_CHARS = 8192
"""Half of what a request's headers may have together."""
MAX_KNOWN_TOKENS = 4096
"""About 2 MB of identities; a token beyond them is verified again."""
MAX_SUBJECT_CHARS = 95
"""Use is counted for `oidc:SUBJECT`, which has at most 100 characters in the database."""
_HASHED = "sha256:"
_MAX_MODELS = 1024
_MAX_TIME_S = 1e11
"""The year 5138; some write milliseconds by mistake, and would otherwise never expire."""
_REQUIRED = ("exp", "iat", "iss", "aud", "sub")
_ALGORITHM_NAMES = frozenset(ALGORITHMS.values())


class TokenRefused(Exception):  # noqa: N818 - it never leaves this module
    """A token opens nothing; the text says why, to the log alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _KnownToken:
    identity: Identity
    until_s: float
    """Unix seconds, the leeway included."""
    generation: int


class TokenVerifier:
    """Says who shows a token.

    Args:
        config: whose tokens count, and what in them means what.
        keys: the public keys of their issuer.
        clock: Unix seconds.
    """

    def __init__(self, config: OidcConfig, keys: KeySet, *, clock: Callable[[], float] = time.time) -> None:
        """Begin without known tokens."""
        self._config = config
        self._keys = keys
        self._clock = clock
        self._known: OrderedDict[bytes, _KnownToken] = OrderedDict()

    async def identify(self, token: str) -> Identity:
        """Return who shows this token; a stranger where it is none of ours, or not good now."""
        if len(token) > MAX_TOKEN_CHARS or token.count(".") != 2 or not token.isascii():
            return STRANGER
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and self._is_good(known):
            self._known.move_to_end(digest)
            return known.identity
        try:
            claims = self._verify(token, await self._key_of(token))
            identity = identity_of_claims(claims, self._config)
        except TokenRefused as refusal:
            self._known.pop(digest, None)
            logger.info("A token is refused: %s", refusal)
            return STRANGER
        until_s = cast("float", claims["exp"]) + LEEWAY_S
        identity = replace(identity, expires_at_s=until_s)
        self._known[digest] = _KnownToken(identity=identity, until_s=until_s, generation=self._keys.generation)
        while len(self._known) > MAX_KNOWN_TOKENS:
            self._known.popitem(last=False)
        return identity

    async def close(self) -> None:
        """Close the connections to the issuer."""
        await self._keys.close()

    def _is_good(self, known: _KnownToken) -> bool:
        is_of_these_keys = known.generation == self._keys.generation and not self._keys.is_stale
        return is_of_these_keys and self._clock() < known.until_s

    async def _key_of(self, token: str) -> SigningKey:
        """Find the key that a token says it was signed for; what else it says of itself is not believed."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise TokenRefused(f"its header cannot be read: {error}") from None
        key_id, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in _ALGORITHM_NAMES or "crit" in header:
            raise TokenRefused(f"its algorithm is {str(algorithm)[:20]!r}")
        if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID_CHARS:
            raise TokenRefused("it names no key")
        key = await self._keys.find(key_id)
        if key is None:
            raise TokenRefused(f"its key {key_id[:40]!r} is not one of the issuer's")
        return key

    def _verify(self, token: str, key: SigningKey) -> Mapping[str, object]:
        try:
            claims = cast(
                "Mapping[str, object]",
                jwt.decode(
                    token,
                    key.key,
                    algorithms=[key.algorithm],
                    audience=self._config.audience,
                    issuer=self._config.issuer,
                    # The times are checked below, by our own clock.
                    options={"require": list(_REQUIRED), "verify_exp": False, "verify_nbf": False, "verify_iat": False},
                ),
            )
        except jwt.PyJWTError as error:
            raise TokenRefused(f"{type(error).__name__}: {error}") from None
        now_s = self._clock()
        if _time_of(claims, "exp") + LEEWAY_S <= now_s:
            raise TokenRefused("it has expired")
        for name in ("iat", "nbf"):
            if name in claims and _time_of(claims, name) > now_s + LEEWAY_S:
                raise TokenRefused(f"its `{name}` is in the future")
        return claims


def identity_of_claims(claims: Mapping[str, object], config: OidcConfig) -> Identity:
    """Read who somebody is and what they may from the claims of a verified token.

    Raises:
        TokenRefused: it does not say who.
    """
    subject = claims.get("sub")
    tenant = claim_of(claims, config.tenant_claim)
    if not isinstance(subject, str) or not subject or not isinstance(tenant, str) or not tenant:
        raise TokenRefused(f"it has no `sub` or no `{config.tenant_claim}`")
    if not is_tenant_name(tenant):  # such as `auth0|5f7c8ec7c33c6c004bbafe82`
        tenant = f"oidc-{_digest_of(tenant)[:32]}"
    words = _words_of(claim_of(claims, config.scopes_claim))
    roles = config.scopes_by_word
    models = None
    if config.models_claim is not None:
        models = frozenset(_words_of(claim_of(claims, config.models_claim))[:_MAX_MODELS])
    return Identity(
        tenant=tenant,
        subject=name_of_subject(subject),
        accesses=accesses_of(roles[word] for word in words if word in roles),
        models=models,
    )


def name_of_subject(subject: str) -> str:
    """Return what a subject is called here: its hash, where it is longer or other than every database can keep.

    What looks like such a name already is hashed too: it could be taken for another's.
    """
    if len(subject) <= MAX_SUBJECT_CHARS and subject.isprintable() and not subject.startswith(_HASHED):
        return subject
    return _HASHED + _digest_of(subject)


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def claim_of(claims: Mapping[str, object], name: str) -> object:
    """Return a claim by its name, or by its path: `a.b` is `b` within `a`, where no claim is called `a.b`."""
    if name in claims:
        return claims[name]
    value: object = claims
    for step in name.split("."):
        value = cast("Mapping[str, object]", value).get(step) if isinstance(value, dict) else None
    return value


def _words_of(value: object) -> list[str]:
    if isinstance(value, str):
        return value.split(" ")
    return [word for word in cast("list[object]", value) if isinstance(word, str)] if isinstance(value, list) else []


def _time_of(claims: Mapping[str, object], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_TIME_S:
        raise TokenRefused(f"its `{name}` is no time")
    return float(value)
