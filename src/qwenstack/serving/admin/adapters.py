"""`/admin/v1/adapters`, and vLLM's two addresses: which LoRA adapters requests may name, changed while serving."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import asdict
from typing import Literal

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRouter
from typing_extensions import TypedDict

from qwenstack.core.protocols import AdapterInfo
from qwenstack.serving.access import AdminRoute
from qwenstack.serving.admin.adapter_shelf import AdapterShelf
from qwenstack.serving.errors import HttpError
from qwenstack.serving.rest.endpoint import Responses, error_responses, identity_of, json_response, key_router
from qwenstack.serving.wire.errors import ErrorBody
from qwenstack.serving.wire.sampling import WireModel


class AdapterRequest(WireModel):
    """An adapter to load."""

    name: str
    """What requests will call it: 1 to 64 letters, digits and `._-`."""
    path: str
    """Its folder, as PEFT saves it, under the server's `adapters.folder`."""
    replace: bool = False
    """Take the place of a loaded one of this name; requests that use that one end with it."""


class LoadLoraRequest(WireModel):
    """The same in vLLM's words."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    """As `replace`."""


class UnloadLoraRequest(WireModel):
    """An adapter to forget, in vLLM's words."""

    lora_name: str
    lora_int_id: int | None = None
    """Accepted and ignored: adapters have no numbers here."""


class AdapterBody(TypedDict):
    """A loaded adapter."""

    object: Literal["adapter"]
    name: str
    rank: int
    """The largest of its matrices."""
    num_bytes: int
    """Memory that it takes."""
    num_sequences: int
    """Answers that are being made with it."""
    digest: str
    """SHA-256 of its files: what prompts are cached under."""


class AdapterList(TypedDict):
    """All loaded adapters, by name."""

    object: Literal["list"]
    data: list[AdapterBody]


class AdapterDeleted(TypedDict):
    """An adapter was forgotten."""

    object: Literal["adapter.deleted"]
    name: str
    deleted: bool


def adapter_routes(shelf: AdapterShelf) -> APIRouter:
    """Make the endpoints."""
    router = key_router(AdminRoute)

    @router.get("/admin/v1/adapters", summary="List the adapters", response_model=AdapterList)
    async def list_adapters() -> Response:
        """List the loaded adapters, by name."""
        body: AdapterList = {"object": "list", "data": list(map(write_adapter_info, await shelf.all()))}
        return json_response(body)

    @router.post("/admin/v1/adapters", summary="Load an adapter", response_model=AdapterBody, responses=_LOADING)
    async def load_adapter(body: AdapterRequest, request: Request) -> Response:
        """Load an adapter between two steps of the engine; if it cannot be used, nothing changes."""
        actor = identity_of(request).actor
        return json_response(
            write_adapter_info(await shelf.load(body.name, body.path, may_replace=body.replace, actor=actor))
        )

    @router.delete(
        "/admin/v1/adapters/{name}", summary="Unload an adapter", response_model=AdapterDeleted, responses=_NOT_FOUND
    )
    async def unload_adapter(name: str, request: Request) -> Response:
        """Forget an adapter. Requests that use it run to their end; then its memory is free."""
        await shelf.unload(name, actor=identity_of(request).actor)
        body: AdapterDeleted = {"object": "adapter.deleted", "name": name, "deleted": True}
        return json_response(body)

    @router.post(
        "/v1/load_lora_adapter",
        summary="Load an adapter, as vLLM",
        response_class=Response,
        responses=_TEXT | _LOADING,
    )
    async def load_lora_adapter(body: LoadLoraRequest, request: Request) -> Response:
        """Do what `POST /admin/v1/adapters` does."""
        actor = identity_of(request).actor
        with _refusals_in_vllms_words():
            await shelf.load(body.lora_name, body.lora_path, may_replace=body.load_inplace, actor=actor)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post(
        "/v1/unload_lora_adapter",
        summary="Unload an adapter, as vLLM",
        response_class=Response,
        responses=_TEXT | _NOT_FOUND,
    )
    async def unload_lora_adapter(body: UnloadLoraRequest, request: Request) -> Response:
        """Do what `DELETE /admin/v1/adapters/{name}` does."""
        with _refusals_in_vllms_words():
            await shelf.unload(body.lora_name, actor=identity_of(request).actor)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router


# Not by `response_class`, which would describe the refusals as text, too.
_TEXT: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_NOT_FOUND: Responses = {404: {"model": ErrorBody, "description": "There is no such adapter."}}
_LOADING = error_responses(400, 409, 503)


@contextlib.contextmanager
def _refusals_in_vllms_words() -> Generator[None]:
    """Name the field of a refused request as vLLM's clients wrote it."""
    try:
        yield
    except HttpError as error:
        error.param = {"name": "lora_name", "path": "lora_path"}.get(error.param or "", error.param)
        raise


def write_adapter_info(info: AdapterInfo) -> AdapterBody:
    """Write an adapter as clients read it."""
    return AdapterBody(object="adapter", **asdict(info))
