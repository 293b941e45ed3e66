"""The public keys of an identity provider: fetched when they are needed, kept, and never asked for too often."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import httpx
import jwt

from qwenstack.core.errors import QwenStackError
from qwenstack.serving.oidc_config import OidcConfig, is_trustworthy
from qwenstack.serving.strict_json import parse_json

logger = logging.getLogger(__name__)

FRESH_S = 3600.0
"""Keys older than this are asked for again beside the work; new ones are found at once by their unknown id."""
STALE_S = 86_400.0
"""Keys that could not be asked for again for so long open nothing: one of them may have been withdrawn."""
RETRY_S = 30.0
"""Between two questions, whatever strangers send: a token with an invented key id costs nobody a request."""
FETCH_TIMEOUT_S = 5.0
MAX_DOCUMENT_BYTES = 256 * 1024
"""A set of 64 RSA keys with their certificates has about 200 kB; providers have two to six."""
MAX_KEYS = 64
MAX_KEY_ID_CHARS = 256
MIN_RSA_BITS = 2048
"""RFC 7518, section 3.3."""

ALGORITHMS: Mapping[tuple[object, object], str] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""The one algorithm that a kind of key verifies. It follows from the key, never from what a token says of itself."""


class KeySetError(QwenStackError):
    """The provider's keys cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A public key that tokens may be signed for."""

    algorithm: str
    key: jwt.PyJWK


class KeySet:
    """The keys of one issuer, by id.

    Args:
        config: whose they are, and where.
        client: makes requests; the default follows no redirects and knows no proxies.
        monotonic: seconds that only grow.
    """

    def __init__(
        self,
        config: OidcConfig,
        *,
        client: httpx.AsyncClient | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without keys."""
        self._config = config
        self._client = client or httpx.AsyncClient(follow_redirects=False, trust_env=False)
        self._monotonic = monotonic
        self._keys: Mapping[str, SigningKey] = {}
        self._fetched_at_s: float | None = None
        self._asked_at_s: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self.generation = 0
        """Grows when the keys change; what was verified with others is to be verified again."""

    async def find(self, key_id: str) -> SigningKey | None:
        """Return the key of an id, asking the provider for one that is not known; None where there is none."""
        if not self.is_stale and key_id in self._keys:
            if self._age_s > FRESH_S:
                self._ask()
            return self._keys[key_id]
        asking = self._ask()
        if asking is not None:
            await asyncio.shield(asking)  # others wait for it too: it does not end with this caller
        return None if self.is_stale else self._keys.get(key_id)

    @property
    def is_stale(self) -> bool:
        """Whether the keys are too old to open anything."""
        return self._age_s > STALE_S

    async def close(self) -> None:
        """Ask no longer, and close the connections."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self._client.aclose()

    @property
    def _age_s(self) -> float:
        return float("inf") if self._fetched_at_s is None else self._monotonic() - self._fetched_at_s

    @property
    def _may_ask(self) -> bool:
        return self._asked_at_s is None or self._monotonic() - self._asked_at_s >= RETRY_S

    def _ask(self) -> asyncio.Task[None] | None:
        """Return the question that is under way, or a new one; None: it is too early for another."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._refresh()) if self._may_ask else None
        return self._asking

    async def _refresh(self) -> None:
        """Ask once for all who wait; where that fails, the keys stay as they are."""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                keys = read_keys(await self._fetch(await self._find_url()))
        except (QwenStackError, httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            logger.error("The keys of %s cannot be had: %s", self._config.issuer, error or type(error).__name__)
        else:
            self._keys, self._fetched_at_s = keys, self._monotonic()
            self.generation += 1
        finally:
            self._asked_at_s = self._monotonic()

    async def _find_url(self) -> str:
        if self._config.jwks_url is not None:
            return self._config.jwks_url
        issuer = self._config.issuer
        document = await self._fetch(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        url = document.get("jwks_uri")
        if document.get("issuer") != issuer:
            raise KeySetError(f"Its configuration is that of {str(document.get('issuer'))[:200]!r}.")
        if not isinstance(url, str) or not is_trustworthy(url):
            raise KeySetError("Its configuration has no `https://` address of its keys.")
        return url

    async def _fetch(self, url: str) -> Mapping[str, object]:
        """Return the JSON object at an address, as it is and nothing longer."""
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        body = bytearray()
        async with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != 200 or "content-encoding" in answer.headers:
                raise KeySetError(f"{url} answers with status {answer.status_code}, or packed.")
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise KeySetError(f"{url} is longer than {MAX_DOCUMENT_BYTES} bytes.")
        document = parse_json(bytes(body))
        if not isinstance(document, dict):
            raise KeySetError(f"{url} is no JSON object.")
        return cast("Mapping[str, object]", document)


def read_keys(document: Mapping[str, object]) -> Mapping[str, SigningKey]:
    """Return the keys of a JWK set (RFC 7517) that may verify tokens; others are left out.

    Raises:
        KeySetError: there is none.
    """
    listed = document.get("keys")
    found: dict[str, SigningKey] = {}
    for entry in cast("list[object]", listed)[:MAX_KEYS] if isinstance(listed, list) else ():
        key = _read_key(cast("dict[str, object]", entry)) if isinstance(entry, dict) else None
        if key is not None:
            found[key[0]] = key[1]
    if not found:
        raise KeySetError(
            "There is no key that could verify a token: RSA from 2048 bits, P-256 or Ed25519, with `kid`."
        )
    return found


def _read_key(entry: Mapping[str, object]) -> tuple[str, SigningKey] | None:
    key_id, kind = entry.get("kid"), entry.get("kty")
    curve = None if kind == "RSA" else entry.get("crv")
    if not (isinstance(kind, str) and isinstance(curve, str | None)):
        return None
    algorithm = ALGORITHMS.get((kind, curve))
    if algorithm is None or entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm:
        return None
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID_CHARS:
        return None
    public = {name: value for name, value in entry.items() if name in {"kty", "crv", "n", "e", "x", "y"}}
    try:
        key = jwt.PyJWK(public, algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if algorithm == "RS256" and key.key.key_size < MIN_RSA_BITS:
        return None
    return key_id, SigningKey(algorithm=algorithm, key=key)
