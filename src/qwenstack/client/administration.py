"""The administration: keys, what they used, adapters, and who did what. It has an address and a key of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from qwenstack.client.call import Call, delete, get, post, segment
from qwenstack.client.endpoint import Endpoint, Group, PagesEndpoint
from qwenstack.client.pages import Page, pages
from qwenstack.client.transport import AsyncTransport, Transport
from qwenstack.client.types import Json

TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)
_KEYS = "/admin/v1/keys"
_ADAPTERS = "/admin/v1/adapters"


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key may use; None: as the server's settings say."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers."""
    concurrent_requests: int | None = None
    """Answers that are waited for at the same time."""
    tokens_per_day: int | None = None
    """Between midnights, UTC."""


class ApiKey(msgspec.Struct, kw_only=True):
    """A key, without its text; times are Unix seconds."""

    id: str
    name: str = ""
    tenant: str = ""
    scopes: list[str] = msgspec.field(default_factory=list[str])
    models: list[str] | None = None
    """None: all."""
    limits: KeyLimits = KeyLimits()
    created_at: int = 0
    expires_at: int | None = None
    revoked_at: int | None = None
    state: str = ""
    """`open`, `expired` or `revoked`."""


class NewApiKey(ApiKey, kw_only=True):
    """A key that was just made."""

    key: str
    """Its text, which the server shows here and never again."""

    def __repr__(self) -> str:
        """Name the key without its text, which is not for logs."""
        return f"NewApiKey(id={self.id!r}, name={self.name!r}, tenant={self.tenant!r})"


class DayOfUse(msgspec.Struct, kw_only=True):
    """What an account used on a day."""

    day: str
    """UTC, as 2026-11-26."""
    account: str
    """A key's id, or how else somebody came in."""
    tenant: str = ""
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class UsageReport(msgspec.Struct, kw_only=True):
    """What was used, the newest day first."""

    data: list[DayOfUse]


class Adapter(msgspec.Struct, kw_only=True):
    """A loaded adapter."""

    name: str
    rank: int = 0
    """The largest of its matrices."""
    num_bytes: int = 0
    """Memory that it takes."""
    num_sequences: int = 0
    """Answers that are being made with it."""
    digest: str = ""
    """SHA-256 of its files."""


class AdapterList(msgspec.Struct, kw_only=True):
    """All loaded adapters, by name."""

    data: list[Adapter]


class UnloadedAdapter(msgspec.Struct, kw_only=True):
    """An adapter that requests can no longer name."""

    name: str
    deleted: bool


class AuditEntry(msgspec.Struct, kw_only=True):
    """One act."""

    seq: int
    at_ms: int = 0
    """Milliseconds since 1970."""
    actor: str = ""
    action: str = ""
    subject: str = ""
    outcome: str = ""
    details: dict[str, Json] = msgspec.field(default_factory=dict[str, Json])
    hash: str = ""
    """Over the entry and the hash of the one before."""


class AuditVerification(msgspec.Struct, kw_only=True):
    """What came of checking the log."""

    is_whole: bool
    """Whether every entry is what was written, and the expected one is among them."""
    num_entries: int = 0
    last_hash: str = ""
    """Kept elsewhere and given as `expect` later, it tells whether the newest entries were cut off."""
    broken_at: int | None = None
    """The first entry that is missing or changed."""
    has_expected: bool = True
    pruned_through: int = 0
    """The last entry that was taken out on purpose; 0: none was."""


def describe_create_key(
    name: str,
    *,
    tenant: str | None = None,
    scopes: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    expires_in_s: float | None = None,
    limits: KeyLimits | None = None,
) -> Call[NewApiKey]:
    """Make a key and return it with its text, this once. From a server's first key on, everybody needs one."""
    body = {
        "name": name,
        "tenant": tenant,
        "scopes": scopes,
        "models": models,
        "expires_in_s": expires_in_s,
        "limits": limits,
    }
    return post(_KEYS, NewApiKey, body, is_repeatable=False)


def describe_list_keys(*, page_size: int = 100) -> Call[Page[ApiKey]]:
    """List all keys, revoked and expired ones too, the newest first, as many at a time as you say."""
    return pages(_KEYS, ApiKey, lambda key: key.id, limit=page_size)


def describe_retrieve_key(key_id: str) -> Call[ApiKey]:
    """Describe a key."""
    return get(f"{_KEYS}/{segment(key_id)}", ApiKey)


def describe_limit_key(key_id: str, limits: KeyLimits) -> Call[ApiKey]:
    """Say anew what an open key may use; a limit that is None goes back to the settings'."""
    return post(f"{_KEYS}/{segment(key_id)}/limits", ApiKey, msgspec.to_builtins(limits))


def describe_revoke_key(key_id: str) -> Call[ApiKey]:
    """Close a key for good; one that is revoked already stays so."""
    return delete(f"{_KEYS}/{segment(key_id)}", ApiKey, is_repeatable=True)


def describe_usage(*, days: int = 7) -> Call[UsageReport]:
    """Read the tokens of each account on each of the last days, today included."""
    return get("/admin/v1/usage", UsageReport, days=days)


def describe_list_adapters() -> Call[AdapterList]:
    """List the loaded adapters, by name."""
    return get(_ADAPTERS, AdapterList)


def describe_load_adapter(name: str, path: str, *, replace: bool = False) -> Call[Adapter]:
    """Load the adapter of a folder on the server, below its `adapters.folder`, under a name."""
    return post(_ADAPTERS, Adapter, {"name": name, "path": path, "replace": replace}, is_repeatable=replace)


def describe_unload_adapter(name: str) -> Call[UnloadedAdapter]:
    """Forget an adapter; requests that use it run to their end."""
    return delete(f"{_ADAPTERS}/{segment(name)}", UnloadedAdapter)


def describe_entries(
    *, order: Literal["asc", "desc"] = "desc", after: int | None = None, page_size: int = 100
) -> Call[Page[AuditEntry]]:
    """Read the whole log, the newest entries first or the oldest; or what comes behind the entry `after`."""
    return pages("/admin/v1/audit", AuditEntry, lambda entry: entry.seq, order=order, after=after, limit=page_size)


def describe_verify(*, expect: str | None = None) -> Call[AuditVerification]:
    """Have the server compute the whole chain of hashes again; `expect` is a `last_hash` from before."""
    return get("/admin/v1/audit/verify", AuditVerification, expect=expect)


class Keys(Group[TransportT]):
    """Who may use the server."""

    create = Endpoint(describe_create_key)
    list = PagesEndpoint(describe_list_keys)
    retrieve = Endpoint(describe_retrieve_key)
    limit = Endpoint(describe_limit_key)
    revoke = Endpoint(describe_revoke_key)


class UsageCalls(Group[TransportT]):
    """What was used."""

    retrieve = Endpoint(describe_usage)


class Adapters(Group[TransportT]):
    """Which LoRA adapters requests may name."""

    list = Endpoint(describe_list_adapters)
    load = Endpoint(describe_load_adapter)
    unload = Endpoint(describe_unload_adapter)


class Audit(Group[TransportT]):
    """Who did what."""

    list = PagesEndpoint(describe_entries)
    verify = Endpoint(describe_verify)
