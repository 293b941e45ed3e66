"""`/v1/files`."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRouter

from qwenstack.serving.access import UploadRoute
from qwenstack.serving.files import Files
from qwenstack.serving.rest.endpoint import error_responses, identity_of, json_response, key_router
from qwenstack.serving.wire.files import UPLOAD_FORM, DeletedFile, FileList, FileObject, write_file

_OTHERS = error_responses(400, 404, 500, 503)
_FORM_BODY = {"required": True, "content": {"multipart/form-data": {"schema": UPLOAD_FORM}}}


def file_routes(files: Files) -> APIRouter:
    """Make the endpoints."""
    router = key_router()

    @router.get("/v1/files", summary="List files", response_model=FileList, responses=_OTHERS)
    async def list_files(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> Response:
        """List your files by age, those after one of them."""
        caller = identity_of(request)
        page, has_more = await files.page(caller, after=after, limit=limit, order=order, purpose=purpose)
        listed: FileList = {
            "object": "list",
            "data": [write_file(file) for file in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": has_more,
        }
        return json_response(listed)

    @router.get("/v1/files/{file_id}", summary="Describe a file", response_model=FileObject, responses=_OTHERS)
    async def retrieve_file(file_id: str, request: Request) -> Response:
        """Describe a file."""
        return json_response(write_file(await files.find(file_id, identity_of(request))))

    @router.get(
        "/v1/files/{file_id}/content",
        summary="Read a file",
        response_class=StreamingResponse,
        responses=_OTHERS | {200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}},
    )
    async def read_file(file_id: str, request: Request) -> Response:
        """Send a file's content, for a browser to save and never to show."""
        file = await files.find(file_id, identity_of(request))
        headers = {
            "Content-Length": str(file.size_bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        }
        return StreamingResponse(await files.read(file), media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{file_id}", summary="Delete a file", response_model=DeletedFile, responses=_OTHERS)
    async def delete_file(file_id: str, request: Request) -> Response:
        """Remove a file, unless a batch reads it."""
        await files.delete(file_id, identity_of(request))
        deleted: DeletedFile = {"id": file_id, "object": "file", "deleted": True}
        return json_response(deleted)

    _add_upload(router, files)
    return router


def _add_upload(router: APIRouter, files: Files) -> None:
    uploads = key_router(UploadRoute)

    @uploads.post(
        "/v1/files",
        summary="Upload a file",
        response_model=FileObject,
        responses=error_responses(400, 413, 415, 500, 503),
        openapi_extra={"requestBody": _FORM_BODY},
    )
    async def create_file(request: Request) -> Response:
        """Take a file; the answer comes when it is on the disk."""
        content_type = request.headers["content-type"]
        return json_response(write_file(await files.upload(request.stream(), content_type, identity_of(request))))

    router.routes.extend(uploads.routes)
