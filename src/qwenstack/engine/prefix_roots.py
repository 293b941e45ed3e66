"""The names that cached prefixes begin with, one for each tenant, adapter and precision on one model."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import cached_property

from qwenstack.engine.cache_key import root_key, tenant_salt
from qwenstack.kernels import ActivationBits

_MAX_REMEMBERED = 4096
"""Roots of so many tenants, adapters and precisions are kept; making one takes microseconds."""


class PrefixRoots:
    """Makes root keys and remembers them.

    Args:
        fingerprint: returns the hash of all that decides keys and values beside tokens, adapter and precision; asked
            for once, when the first request comes, and may take a while.
        secret: keeps tenants' names apart; nobody outside knows it.
        kv_dtype: how keys and values are stored.
        settings: what else decides keys and values: a conversion of the weights, a scaling of positions.
        arithmetic: `cache_key.numpy_probe()`.
    """

    def __init__(
        self,
        *,
        fingerprint: Callable[[], bytes],
        secret: bytes,
        kv_dtype: str = "",
        settings: bytes = b"",
        arithmetic: bytes = b"",
    ) -> None:
        """Remember the parts."""
        self._find_fingerprint = fingerprint
        self._secret = secret
        self._kv_dtype = kv_dtype
        self._settings = settings
        self._arithmetic = arithmetic
        self._known: dict[tuple[str, str | None, ActivationBits], bytes] = {}

    @classmethod
    def of_one_process(cls) -> PrefixRoots:
        """Return names that only this object gives, for caches that nobody else reads."""
        return cls(fingerprint=lambda: secrets.token_bytes(32), secret=secrets.token_bytes(32))

    def of(self, tenant: str, adapter_digest: str | None, activation_bits: ActivationBits) -> bytes:
        """Return the parent of the first blocks of such requests."""
        name = (tenant, adapter_digest, activation_bits)
        if name not in self._known:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[name] = root_key(
                self._fingerprint,
                kv_dtype=self._kv_dtype,
                precision=f"a{activation_bits}",
                settings=self._settings,
                arithmetic=self._arithmetic,
                adapter_digest=None if adapter_digest is None else bytes.fromhex(adapter_digest),
                tenant_salt=tenant_salt(self._secret, tenant),
            )
        return self._known[name]

    @cached_property
    def _fingerprint(self) -> bytes:
        return self._find_fingerprint()
