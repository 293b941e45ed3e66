"""`/v1/batches`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.access import ActionRoute
from qwenstack.serving.batches import Batches
from qwenstack.serving.rest.endpoint import error_responses, identity_of, json_response, key_router
from qwenstack.serving.wire.batches import BatchList, BatchObject, BatchRequest, write_batch

_OTHERS = error_responses(400, 404, 500, 503)


def batch_routes(batches: Batches) -> APIRouter:
    """Make the endpoints."""
    router = key_router()

    @router.post(
        "/v1/batches",
        summary="Make a batch",
        response_model=BatchObject,
        responses=error_responses(400, 404, 413, 415, 500, 503),
    )
    async def create_batch(body: BatchRequest, request: Request) -> Response:
        """Take a file of requests, which are answered when there is time."""
        return json_response(write_batch(await batches.create(body, identity_of(request))))

    @router.get("/v1/batches", summary="List batches", response_model=BatchList, responses=_OTHERS)
    async def list_batches(
        request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> Response:
        """List your batches, the newest first."""
        page, has_more = await batches.page(identity_of(request), after=after, limit=limit)
        listed: BatchList = {
            "object": "list",
            "data": [write_batch(batch) for batch in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": has_more,
        }
        return json_response(listed)

    @router.get("/v1/batches/{batch_id}", summary="Describe a batch", response_model=BatchObject, responses=_OTHERS)
    async def retrieve_batch(batch_id: str, request: Request) -> Response:
        """Tell how far a batch is."""
        return json_response(write_batch(await batches.find(batch_id, identity_of(request))))

    actions = key_router(ActionRoute)

    @actions.post(
        "/v1/batches/{batch_id}/cancel", summary="Cancel a batch", response_model=BatchObject, responses=_OTHERS
    )
    async def cancel_batch(batch_id: str, request: Request) -> Response:
        """Stop a batch; what was answered until then is in its files."""
        return json_response(write_batch(await batches.cancel(batch_id, identity_of(request))))

    router.routes.extend(actions.routes)
    return router
