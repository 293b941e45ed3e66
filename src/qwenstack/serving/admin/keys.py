"""`/admin/v1/keys`: who may use the server."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Literal, cast

from fastapi import Query, Request, Response
from fastapi.routing import APIRouter
from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.limits import MAX_LIMIT, Limits
from qwenstack.core.scope import Scope
from qwenstack.serving.access import AdminRoute
from qwenstack.serving.errors import HttpError
from qwenstack.serving.identity import KeyRing
from qwenstack.serving.key_watch import refresh
from qwenstack.serving.rest.endpoint import Responses, error_responses, identity_of, json_response, key_router
from qwenstack.serving.wire.errors import ErrorBody
from qwenstack.serving.wire.sampling import WireModel
from qwenstack.storage import ApiKey, ApiKeys

MAX_PAGE = 1000
MAX_LIFETIME_S = 10 * 366 * 86_400
_MAX_MODELS = 64

Count = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE)]


class LimitFields(WireModel):
    """What a key may use; what is left out is as the server's settings say."""

    requests_per_minute: Count | None = None
    """Requests that need a key."""
    tokens_per_minute: Count | None = None
    """Tokens of prompts and answers."""
    concurrent_requests: Count | None = None
    """Answers that are waited for at the same time, streams included."""
    tokens_per_day: Count | None = None
    """Tokens of prompts and answers between midnights, UTC."""

    def to_limits(self) -> Limits:
        """Return them as the server keeps them."""
        return Limits(**self.model_dump())


class KeyRequest(WireModel):
    """A key to make."""

    name: str
    """What it is for."""
    tenant: str = "default"
    """Whose it is; requests of one tenant share cached prompts and take their turns together."""
    scopes: list[Scope] = Field(["inference"], min_length=1, max_length=8)
    """What it opens."""
    models: list[str] | None = Field(None, max_length=_MAX_MODELS)
    """Models that it may use; left out or null: all."""
    expires_in_s: float | None = Field(None, gt=0, le=MAX_LIFETIME_S)
    """How long it is good; left out or null: until it is revoked."""
    limits: LimitFields = LimitFields()
    """What it may use."""


class LimitBody(TypedDict):
    """What a key may use; null: as the server's settings say."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    tokens_per_day: int | None


class KeyBody(TypedDict):
    """A key, without its text."""

    object: Literal["api_key"]
    id: str
    name: str
    tenant: str
    scopes: list[Scope]
    models: list[str] | None
    limits: LimitBody
    created_at: int
    """Unix seconds, as the others."""
    expires_at: int | None
    revoked_at: int | None
    state: Literal["open", "expired", "revoked"]


class NewKeyBody(KeyBody):
    """A key that was just made."""

    key: str
    """Its text, which is shown here and never again."""


class KeyList(TypedDict):
    """A page of keys, the newest first."""

    object: Literal["list"]
    data: list[KeyBody]
    has_more: bool


def key_routes(keys: ApiKeys, ring: KeyRing) -> APIRouter:
    """Make the endpoints; what they change counts at once in `ring`."""
    router = key_router(AdminRoute)

    @router.get("/admin/v1/keys", summary="List the keys", response_model=KeyList, responses=error_responses(400))
    async def list_keys(after: str | None = None, limit: PageSize = 100) -> Response:
        """List all keys, revoked and expired ones too, the newest first."""
        found = await asyncio.to_thread(keys.page, limit + 1, after=after)
        body: KeyList = {"object": "list", "data": list(map(write_key, found[:limit])), "has_more": len(found) > limit}
        return json_response(body)

    @router.post("/admin/v1/keys", summary="Make a key", response_model=NewKeyBody, responses=error_responses(400))
    async def create_key(body: KeyRequest, request: Request) -> Response:
        """Make a key and show it, this once. From the first key on, everybody needs one."""

        def create() -> NewKeyBody:
            made = keys.create(
                name=body.name,
                tenant=body.tenant,
                actor=identity_of(request).actor,
                scopes=body.scopes,
                models=body.models,
                lifetime_s=body.expires_in_s,
                limits=body.limits.to_limits(),
            )
            refresh(ring, keys)
            return {**write_key(made.key), "key": made.text}

        return json_response(await asyncio.to_thread(create))

    @router.get("/admin/v1/keys/{key_id}", summary="Describe a key", response_model=KeyBody, responses=_NOT_FOUND)
    async def read_key(key_id: str) -> Response:
        """Describe the key of this id."""
        return json_response(write_key(_known(key_id, await asyncio.to_thread(keys.get, key_id))))

    @router.post("/admin/v1/keys/{key_id}/limits", summary="Limit a key", response_model=KeyBody, responses=_NOT_FOUND)
    async def limit_key(key_id: str, body: LimitFields, request: Request) -> Response:
        """Say anew what an open key may use, and describe it; a limit that is left out goes back to the settings'."""

        def limit() -> ApiKey | None:
            found = keys.limit(key_id, body.to_limits(), actor=identity_of(request).actor)
            refresh(ring, keys)
            return keys.get(key_id) if found else None

        return json_response(write_key(_known(key_id, await asyncio.to_thread(limit))))

    @router.delete("/admin/v1/keys/{key_id}", summary="Revoke a key", response_model=KeyBody, responses=_NOT_FOUND)
    async def revoke_key(key_id: str, request: Request) -> Response:
        """Close the key of this id for good, and describe it; one that is revoked already stays so."""

        def revoke() -> ApiKey | None:
            keys.revoke(key_id, actor=identity_of(request).actor)
            refresh(ring, keys)
            return keys.get(key_id)

        return json_response(write_key(_known(key_id, await asyncio.to_thread(revoke))))

    return router


_NOT_FOUND: Responses = {404: {"model": ErrorBody, "description": "There is no such key."}}


def _known(key_id: str, key: ApiKey | None) -> ApiKey:
    if key is None:
        raise HttpError(404, f"There is no key {key_id[:40]!r}.", code="not_found", param="key_id")
    return key


def write_key(key: ApiKey) -> KeyBody:
    """Write a key as clients read it."""
    state = "open" if key.is_valid_at(time.time() * 1000) else "revoked" if key.revoked_at_ms else "expired"
    return {
        "object": "api_key",
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "limits": cast("LimitBody", asdict(key.limits)),
        "created_at": key.created_at_ms // 1000,
        "expires_at": _seconds(key.expires_at_ms),
        "revoked_at": _seconds(key.revoked_at_ms),
        "state": state,
    }


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
