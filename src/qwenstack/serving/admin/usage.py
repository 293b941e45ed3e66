"""`/admin/v1/usage`: how many tokens each key used."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

from fastapi import Query, Response
from fastapi.routing import APIRouter
from typing_extensions import TypedDict

from qwenstack.serving.access import AdminRoute
from qwenstack.serving.rest.endpoint import error_responses, json_response, key_router
from qwenstack.storage import UsageRecords
from qwenstack.storage.usage import MAX_DAYS


class UsageBody(TypedDict):
    """What was used on a day."""

    day: str
    """UTC, as 2026-11-26."""
    account: str
    """A key's id, a token's subject, a tenant of a configured key, or `anyone`."""
    tenant: str
    requests: int
    """Requests that used tokens."""
    prompt_tokens: int
    completion_tokens: int


class UsageList(TypedDict):
    """What was used, the newest day first."""

    object: Literal["list"]
    data: list[UsageBody]


def usage_routes(records: UsageRecords) -> APIRouter:
    """Make the endpoint."""
    router = key_router(AdminRoute)

    @router.get("/admin/v1/usage", summary="Read what was used", response_model=UsageList, responses=_REFUSED)
    async def read_usage(days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 7) -> Response:
        """Read the tokens of each key on each of the last days, today included; half a second behind."""
        found = await asyncio.to_thread(records.of_last_days, days, now_s=time.time())
        data: list[UsageBody] = [
            {
                "day": key.day,
                "account": key.account,
                "tenant": used.tenant,
                "requests": used.requests,
                "prompt_tokens": used.prompt_tokens,
                "completion_tokens": used.completion_tokens,
            }
            for key, used in found
        ]
        body: UsageList = {"object": "list", "data": data}
        return json_response(body)

    return router


_REFUSED = error_responses(400)
