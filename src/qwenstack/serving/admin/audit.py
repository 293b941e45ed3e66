"""`/admin/v1/audit`: who did what, and whether the log is what was written."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Literal, cast

from fastapi import Query, Response
from fastapi.routing import APIRouter
from typing_extensions import TypedDict

from qwenstack.serving.access import AdminRoute
from qwenstack.serving.rest.endpoint import error_responses, json_response, key_router
from qwenstack.storage import AuditLog

MAX_PAGE = 1000


class EntryBody(TypedDict):
    """An entry of the log."""

    seq: int
    at_ms: int
    """Milliseconds since 1970."""
    actor: str
    """A key's id, a token's subject, or how somebody on the machine itself came in; `-`: a stranger."""
    action: str
    subject: str
    outcome: str
    details: Mapping[str, object]
    hash: str
    """Over the entry and the hash of the one before, in hexadecimal."""


class EntryList(TypedDict):
    """A page of the log."""

    object: Literal["list"]
    data: list[EntryBody]
    has_more: bool


class VerificationBody(TypedDict):
    """What came of checking the chain."""

    is_whole: bool
    """Whether every entry is what was written, and the expected one is among them."""
    num_entries: int
    last_hash: str
    """Kept elsewhere and given as `expect` later, it tells whether the newest entries were cut off."""
    broken_at: int | None
    """The first entry that is missing or changed."""
    has_expected: bool
    pruned_through: int
    """The last entry that was taken out on purpose; 0: none was."""


def audit_routes(log: AuditLog) -> APIRouter:
    """Make the endpoints."""
    router = key_router(AdminRoute)
    checking = asyncio.Lock()

    @router.get("/admin/v1/audit", summary="Read the audit log", response_model=EntryList, responses=_REFUSED)
    async def read_audit(
        after: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        """Read the log: the newest entries first, or with `order=asc` the oldest; `after` goes on behind a number."""
        if order == "asc":
            found = await asyncio.to_thread(log.after, after or 0, limit + 1)
        else:
            found = await asyncio.to_thread(log.newest, limit + 1, before=after)
        page: EntryList = {
            "object": "list",
            "data": [cast("EntryBody", entry.document()) for entry in found[:limit]],
            "has_more": len(found) > limit,
        }
        return json_response(page)

    @router.get(
        "/admin/v1/audit/verify", summary="Check the audit log", response_model=VerificationBody, responses=_REFUSED
    )
    async def verify_audit(expect: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None) -> Response:
        """Compute the whole chain of hashes again, one check at a time: it reads every entry."""
        async with checking:
            result = await asyncio.to_thread(log.verify, None if expect is None else bytes.fromhex(expect))
        body: VerificationBody = {
            "is_whole": result.broken_at is None and result.has_expected,
            "num_entries": result.num_entries,
            "last_hash": result.last_hash.hex(),
            "broken_at": result.broken_at,
            "has_expected": result.has_expected,
            "pruned_through": result.pruned_through,
        }
        return json_response(body)

    return router


_REFUSED = error_responses(400)
