"""Files that the server keeps: what batches read, and what they write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from qwenstack.client.call import Call, Upload, delete, get, given, reader, segment
from qwenstack.client.endpoint import Endpoint, FlowEndpoint, Group, PagesEndpoint
from qwenstack.client.pages import Page, pages
from qwenstack.client.retry import Flow, RetryPolicy, save_answer
from qwenstack.client.transport import AsyncTransport, Transport

TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)
Content = bytes | str | os.PathLike[str]
"""The bytes themselves, or the path of a file that has them."""


class StoredFile(msgspec.Struct, kw_only=True):
    """A file, without its content."""

    id: str
    bytes: int = 0
    created_at: int = 0
    """Unix seconds, as the other."""
    expires_at: int | None = None
    filename: str = ""
    purpose: str = ""


class DeletedFile(msgspec.Struct, kw_only=True):
    """A file that is no more."""

    id: str
    deleted: bool


def describe_create(
    file: Content, *, purpose: str = "batch", filename: str | None = None, expires_after_s: int | None = None
) -> Call[StoredFile]:
    """Upload a file, from a path a piece at a time; one for a batch is kept 30 days where nothing else is said."""
    content = file if isinstance(file, bytes) else Path(file)
    name = filename or (content.name if isinstance(content, Path) else "file")
    anchor = None if expires_after_s is None else "created_at"
    fields = {"purpose": purpose, "expires_after[anchor]": anchor, "expires_after[seconds]": expires_after_s}
    return Call(
        method="POST",
        path="/v1/files",
        read=reader(StoredFile),
        body=given(fields),
        files={"file": Upload(name, content)},
        is_repeatable=False,
    )


def describe_list(
    *, purpose: str | None = None, order: Literal["asc", "desc"] = "desc", page_size: int = 100
) -> Call[Page[StoredFile]]:
    """List your files by age, all of them, as many at a time as you say."""
    return pages("/v1/files", StoredFile, lambda file: file.id, purpose=purpose, order=order, limit=page_size)


def describe_retrieve(file_id: str) -> Call[StoredFile]:
    """Describe a file."""
    return get(f"/v1/files/{segment(file_id)}", StoredFile)


def describe_content(file_id: str) -> Call[bytes]:
    """Read a file into memory."""
    return Call(method="GET", path=f"/v1/files/{segment(file_id)}/content", read=bytes)


def download(policy: RetryPolicy, file_id: str, path: str | os.PathLike[str]) -> Flow[Path]:
    """Write a file's content to a path, a piece at a time; the file is there when it is whole, and not before."""
    return save_answer(describe_content(file_id), policy, Path(path))


def describe_delete(file_id: str) -> Call[DeletedFile]:
    """Remove a file, unless a batch reads it."""
    return delete(f"/v1/files/{segment(file_id)}", DeletedFile)


class Files(Group[TransportT]):
    """Files that the server keeps."""

    create = Endpoint(describe_create)
    list = PagesEndpoint(describe_list)
    retrieve = Endpoint(describe_retrieve)
    content = Endpoint(describe_content)
    download = FlowEndpoint(download)
    delete = Endpoint(describe_delete)
