"""API keys: `qs-ID.SECRET`, of which only the id and a hash of the secret are kept.

A secret has 256 random bits, so a plain SHA-256 of it gives nothing away and is fast enough to check at every request.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sqlalchemy import Connection, Row, insert, select, update

from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.limits import NO_LIMITS, Limits, read_limits
from qwenstack.core.scope import SCOPES, Scope
from qwenstack.storage.audit import AuditLog, AuditRecord
from qwenstack.storage.database import Database
from qwenstack.storage.schema import api_keys, state

_PREFIX = "qs-"
_ID_BYTES = 10
_SECRET_BYTES = 32
_KEY = re.compile(rf"{_PREFIX}([a-z2-7]{{16}})\.([A-Za-z0-9_-]{{43}})")
_TENANT = re.compile(r"[^\W_][\w.@-]{0,63}")
_MAX_NAME_CHARS = 100
_MAX_MODEL_CHARS = 200
_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key, without its secret."""

    id: str
    name: str
    """What it is for, in its maker's words."""
    tenant: str
    """Whose it is; keys of one tenant share what the server keeps for them."""
    scopes: frozenset[Scope]
    models: frozenset[str] | None
    """Models that it may use; None: all."""
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    limits: Limits = NO_LIMITS
    """What it may use; the server's own limits hold where there are none."""

    def is_valid_at(self, now_ms: float) -> bool:
        """Whether it opens anything at this time."""
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was just made, with the only copy of its text."""

    key: ApiKey
    text: str


class KeySnapshot:
    """All keys at one time: what is asked at every request, without the database."""

    def __init__(self, keys: Mapping[str, tuple[ApiKey, bytes]], revision: int) -> None:
        """Take keys and the hashes of their secrets, by id."""
        self._keys = MappingProxyType(dict(keys))
        self.revision = revision

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, presented: str, *, now_ms: float) -> ApiKey | None:
        """Return the key whose text this is, if it is valid.

        An unknown id costs the same comparison as a wrong secret, so the time does not tell which ids exist.
        """
        found = _KEY.fullmatch(presented)
        key_id, secret = found.groups() if found else ("", "")
        key, digest = self._keys.get(key_id, (None, _NO_DIGEST))
        is_right = hmac.compare_digest(digest, _digest(secret))
        return key if key is not None and is_right and key.is_valid_at(now_ms) else None

    def by_id(self, key_id: str, *, now_ms: float) -> ApiKey | None:
        """Return the key of this id, if it is valid: for work that it has begun."""
        key, _ = self._keys.get(key_id, (None, _NO_DIGEST))
        return key if key is not None and key.is_valid_at(now_ms) else None


class ApiKeys:
    """The keys in a database; each change is in the audit log with it."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        """Use a database that `open_database` opened."""
        self._database = database
        self._audit = AuditLog(database, clock=clock)
        self._clock = clock

    def create(
        self,
        *,
        name: str,
        tenant: str,
        actor: str,
        scopes: Sequence[Scope] = ("inference",),
        models: Sequence[str] | None = None,
        lifetime_s: float | None = None,
        limits: Limits = NO_LIMITS,
    ) -> NewKey:
        """Make a key; its text is returned once and never again.

        Raises:
            RequestError: a name, a scope or the lifetime cannot be.
            StorageError: the database cannot be written to.
        """
        _check(name=name, tenant=tenant, scopes=scopes, models=models or (), lifetime_s=lifetime_s)
        now_ms = int(self._clock() * 1000)
        key = ApiKey(
            id=base64.b32encode(secrets.token_bytes(_ID_BYTES)).decode().lower(),
            name=name,
            tenant=tenant,
            scopes=frozenset(scopes),
            models=None if models is None else frozenset(models),
            created_at_ms=now_ms,
            expires_at_ms=None if lifetime_s is None else now_ms + int(lifetime_s * 1000),
            revoked_at_ms=None,
            limits=limits,
        )
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        details = {
            "name": name,
            "tenant": tenant,
            "scopes": sorted(scopes),
            "models": models and sorted(models),
            "limits": limits.given(),
        }

        def write(connection: Connection) -> None:
            connection.execute(insert(api_keys).values(**_row_of(key), secret_sha256=_digest(secret)))
            self._note(connection, AuditRecord(actor=actor, action="key.create", subject=key.id, details=details))

        self._database.write(write)
        return NewKey(key=key, text=f"{_PREFIX}{key.id}.{secret}")

    def revoke(self, key_id: str, *, actor: str) -> bool:
        """Close a key for good; return whether there was an open one of this id.

        Raises:
            StorageError: the database cannot be written to.
        """
        now_ms = int(self._clock() * 1000)
        is_open = (api_keys.c.id == key_id) & api_keys.c.revoked_at_ms.is_(None)

        def write(connection: Connection) -> bool:
            found = connection.execute(update(api_keys).where(is_open).values(revoked_at_ms=now_ms)).rowcount > 0
            if found:
                self._note(connection, AuditRecord(actor=actor, action="key.revoke", subject=key_id))
            return found

        return self._database.write(write)

    def limit(self, key_id: str, limits: Limits, *, actor: str) -> bool:
        """Change what a key may use; return whether there was an open one of this id.

        Raises:
            StorageError: the database cannot be written to.
        """
        is_open = (api_keys.c.id == key_id) & api_keys.c.revoked_at_ms.is_(None)
        record = AuditRecord(actor=actor, action="key.limit", subject=key_id, details=limits.given())

        def write(connection: Connection) -> bool:
            change = update(api_keys).where(is_open).values(limits=json.dumps(limits.given()))
            found = connection.execute(change).rowcount > 0
            if found:
                self._note(connection, record)
            return found

        return self._database.write(write)

    def all(self) -> list[ApiKey]:
        """Return every key, revoked and expired ones too, the newest first."""
        query = select(api_keys).order_by(api_keys.c.created_at_ms.desc(), api_keys.c.id)
        return self._database.read(lambda connection: [_key_of(row) for row in connection.execute(query)])

    def page(self, limit: int, *, after: str | None = None) -> list[ApiKey]:
        """Return some of them in the same order, from the one after a key of this id on.

        Raises:
            RequestError: there is no such key.
            StorageError: the database cannot be read.
        """
        query = select(api_keys).order_by(api_keys.c.created_at_ms.desc(), api_keys.c.id).limit(limit)
        if after is not None:
            last = self.get(after)
            if last is None:
                raise RequestError(f"There is no key {after[:40]!r} to go on after.", param="after")
            is_older = api_keys.c.created_at_ms < last.created_at_ms
            is_beside = (api_keys.c.created_at_ms == last.created_at_ms) & (api_keys.c.id > last.id)
            query = query.where(is_older | is_beside)
        return self._database.read(lambda connection: [_key_of(row) for row in connection.execute(query)])

    def get(self, key_id: str) -> ApiKey | None:
        """Return the key of an id; None where there never was one."""
        query = select(api_keys).where(api_keys.c.id == key_id)
        row = self._database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _key_of(row)

    def revision(self) -> int:
        """Return a number that no other state of the keys has: cheap to ask, and a reason to take a new snapshot.

        0: no key was ever made.
        """
        return self._database.read(lambda connection: connection.execute(select(state.c.keys_revision)).scalar_one())

    def snapshot(self) -> KeySnapshot:
        """Return all keys with the hashes of their secrets."""

        def read(connection: Connection) -> KeySnapshot:
            revision = connection.execute(select(state.c.keys_revision)).scalar_one()
            rows = connection.execute(select(api_keys)).all()
            return KeySnapshot({row.id: (_key_of(row), row.secret_sha256) for row in rows}, revision)

        return self._database.read(read)

    def _note(self, connection: Connection, record: AuditRecord) -> None:
        self._audit.append_within(connection, [record])
        connection.execute(update(state).values(keys_revision=new_revision()))


def new_revision() -> int:
    """Return what names a new state of the keys.

    A random number, not a count: a database that was put back from a copy, and changed since, has another one than the
    servers know that saw the changes it no longer has.
    """
    return secrets.randbelow(2**62) + 1


def is_tenant_name(text: str) -> bool:
    """Tell whether a tenant may be called so."""
    return _TENANT.fullmatch(text) is not None


def _check(*, name: str, tenant: str, scopes: Sequence[str], models: Sequence[str], lifetime_s: float | None) -> None:
    if not 0 < len(name) <= _MAX_NAME_CHARS or not name.isprintable():
        raise RequestError(
            f"A key's name has 1 to {_MAX_NAME_CHARS} printable characters, not {name[:40]!r}.", param="name"
        )
    if not is_tenant_name(tenant):
        raise RequestError(
            f"A tenant's name has 1 to 64 letters, digits and _ . @ -, not {tenant[:40]!r}.", param="tenant"
        )
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        given = repr(unknown[0]) if unknown else "none"
        raise RequestError(f"A key's scopes are some of {', '.join(SCOPES)}, not {given}.", param="scopes")
    for model in models:
        if not 0 < len(model) <= _MAX_MODEL_CHARS or not model.isprintable() or model == "default":
            raise RequestError(
                f"A key's models are ids as `/v1/models` lists them, not {model[:40]!r}.", param="models"
            )
    if lifetime_s is not None and not 0 < lifetime_s < 1e10:
        raise RequestError(f"A key's lifetime is {lifetime_s!r} s; it must be above 0.", param="lifetime_s")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _row_of(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": json.dumps(sorted(key.scopes)),
        "models": None if key.models is None else json.dumps(sorted(key.models)),
        "created_at_ms": key.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "limits": json.dumps(key.limits.given()),
    }


def _key_of(row: Row[tuple[object, ...]]) -> ApiKey:
    try:
        scopes, models = json.loads(row.scopes), None if row.models is None else frozenset(json.loads(row.models))
        limits = NO_LIMITS if row.limits is None else read_limits(json.loads(row.limits))
    except (ValueError, TypeError, AttributeError, ConfigError):
        scopes, models, limits = (), frozenset[str](), NO_LIMITS  # damaged: it opens nothing
    return ApiKey(
        id=row.id,
        name=row.name,
        tenant=row.tenant,
        scopes=frozenset(scope for scope in SCOPES if scope in scopes),
        models=models,
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        revoked_at_ms=row.revoked_at_ms,
        limits=limits,
    )
