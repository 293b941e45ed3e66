"""`/v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import Query, Request, Response
from fastapi.routing import APIRouter

from qwenstack.serving.access import ActionRoute
from qwenstack.serving.errors import HttpError
from qwenstack.serving.responses import Responses
from qwenstack.serving.rest.endpoint import (
    Backend,
    StreamForm,
    error_responses,
    generation_responses,
    identity_of,
    json_response,
    key_router,
    request_id_of,
)
from qwenstack.serving.wire.errors import ErrorAnswer
from qwenstack.serving.wire.response_events import encode_response_event
from qwenstack.serving.wire.responses import (
    DeletedResponse,
    InputItemList,
    ResponseEvent,
    ResponseObject,
    ResponseRequest,
)
from qwenstack.serving.wire.sse import PING

_STREAM = "With `stream`: events named by `event`, whose `data` is a `ResponseEvent`."
_OTHERS = error_responses(400, 404, 500, 503)


def _encode_error(answer: ErrorAnswer) -> bytes:
    detail = answer.detail
    event: ResponseEvent = {
        "type": "error",
        "sequence_number": 0,
        "code": detail["code"],
        "message": detail["message"],
        "param": detail["param"],
    }
    return encode_response_event(event)


RESPONSE_STREAM = StreamForm(media_type="text/event-stream", ping=PING, write_error=_encode_error)


def response_routes(backend: Backend, responses: Responses) -> APIRouter:
    """Make the endpoints."""
    router = key_router()

    @router.post(
        "/v1/responses",
        summary="Make a response",
        response_model=ResponseObject,
        responses=generation_responses(_STREAM),
    )
    async def create_response(body: ResponseRequest, request: Request) -> Response:
        """Answer, whole, as a stream, or in the background; go on with a conversation that the server keeps."""
        reading = responses.read(body, identity_of(request), request_id=request_id_of(request))
        draft = await backend.run(request, reading)
        if body.background:
            run = await responses.begin(draft)
            if body.stream:
                return backend.stream(request, _encoded(run.follow()), RESPONSE_STREAM)
            return json_response(draft.response)
        if body.stream:
            return backend.stream(request, _encoded(responses.make(draft)), RESPONSE_STREAM)
        return json_response(await backend.run(request, responses.complete(draft)))

    @router.get(
        "/v1/responses/{response_id}",
        summary="Read a response",
        response_model=ResponseObject,
        responses=generation_responses(_STREAM),
    )
    async def retrieve_response(
        response_id: str,
        request: Request,
        stream: bool = False,
        starting_after: Annotated[int, Query(ge=-1)] = -1,
    ) -> Response:
        """Return a response that was stored; with `stream`, the events of one in the background, after a number."""
        if stream:
            run = await responses.events_of(response_id, identity_of(request))
            return backend.stream(request, _encoded(run.follow(after=starting_after)), RESPONSE_STREAM)
        return json_response(await responses.find(response_id, identity_of(request)))

    @router.delete(
        "/v1/responses/{response_id}", summary="Delete a response", response_model=DeletedResponse, responses=_OTHERS
    )
    async def delete_response(response_id: str, request: Request) -> Response:
        """Forget a response; one that is being made is stopped."""
        await responses.delete(response_id, identity_of(request))
        deleted: DeletedResponse = {"id": response_id, "object": "response", "deleted": True}
        return json_response(deleted)

    @router.get(
        "/v1/responses/{response_id}/input_items",
        summary="List what a response was asked",
        response_model=InputItemList,
        responses=_OTHERS,
    )
    async def list_input_items(
        response_id: str,
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        """List the items of a response's own input, without the conversation before it."""
        items = await responses.input_items(response_id, identity_of(request))
        return json_response(_page_of(items if order == "asc" else items[::-1], after, limit))

    _add_cancel(router, responses)
    return router


def _add_cancel(router: APIRouter, responses: Responses) -> None:
    actions = key_router(ActionRoute)

    @actions.post(
        "/v1/responses/{response_id}/cancel",
        summary="Cancel a response",
        response_model=ResponseObject,
        responses=_OTHERS,
    )
    async def cancel_response(response_id: str, request: Request) -> Response:
        """Stop a response in the background; one that has ended stays as it is."""
        return json_response(await responses.cancel(response_id, identity_of(request)))

    router.routes.extend(actions.routes)


async def _encoded(events: AsyncGenerator[ResponseEvent]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for event in events:
            yield encode_response_event(event)


def _page_of(items: list[dict[str, object]], after: str | None, limit: int) -> InputItemList:
    ids = [str(item["id"]) for item in items]
    if after is not None and after not in ids:
        raise HttpError(400, f"`after` is {after[:80]!r}, which is no item here.", code="invalid_value", param="after")
    start = 0 if after is None else ids.index(after) + 1
    page = items[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": ids[start] if page else None,
        "last_id": ids[start + len(page) - 1] if page else None,
        "has_more": start + limit < len(items),
    }
