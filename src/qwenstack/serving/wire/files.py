"""OpenAI's files: what a form says, and the object that clients get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.serving.form import FormReader
from qwenstack.storage import StoredFile

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
"""What clients may upload files for; `batch` is what this server reads, the others are kept."""
BATCH_LIFETIME_S = 30 * 86_400
"""As OpenAI's: what batches read and write expires after 30 days where nothing else is said."""
_LIFETIMES_S = range(3600, 30 * 86_400 + 1)
_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFields:
    """What a form says about its file."""

    purpose: str
    filename: str
    lifetime_s: int | None


class FileObject(TypedDict):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(TypedDict):
    """Some files."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(TypedDict):
    """A file that is no more."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


UPLOAD_FORM: dict[str, object] = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {
        "purpose": {"type": "string", "enum": list(get_args(Purpose))},
        "file": {"type": "string", "format": "binary"},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": _LIFETIMES_S.start,
            "maximum": _LIFETIMES_S.stop - 1,
            "description": "Seconds until the file is removed; 30 days where nothing is said and it is for a batch.",
        },
    },
}


def read_fields(form: FormReader) -> UploadFields:
    """Check what a form said.

    Raises:
        RequestError: it is not whole, or a field is missing, unknown or wrong.
    """
    if not form.is_whole:
        raise RequestError("The form ends before its last boundary. Send it again.", code="invalid_form")
    for name in form.fields:
        if name not in _FIELDS:
            text = f"`{name[:80]}` is not a field of this form; it has `file`, {', '.join(sorted(_FIELDS))}."
            raise RequestError(text, param=name[:80], code="unknown_parameter")
    if form.filename is None:
        raise RequestError("`file` is missing.", param="file", code="missing_required_parameter")
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise RequestError("`purpose` is missing.", param="purpose", code="missing_required_parameter")
    if purpose not in get_args(Purpose):
        text = f"`purpose` is {purpose[:80]!r}; it must be one of {', '.join(get_args(Purpose))}."
        raise RequestError(text, param="purpose", code="invalid_value")
    return UploadFields(purpose=purpose, filename=form.filename, lifetime_s=_read_lifetime(form, purpose))


def _read_lifetime(form: FormReader, purpose: str) -> int | None:
    anchor, text = form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]")
    if anchor is None and text is None:
        return BATCH_LIFETIME_S if purpose == "batch" else None
    if anchor != "created_at":
        message = f"`expires_after[anchor]` is {(anchor or '')[:40]!r}; it must be 'created_at'."
        raise RequestError(message, param="expires_after[anchor]", code="invalid_value")
    seconds = int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else -1
    if seconds not in _LIFETIMES_S:
        low, high = _LIFETIMES_S.start, _LIFETIMES_S.stop - 1
        message = f"`expires_after[seconds]` is {(text or '')[:40]!r}; it must be between {low} and {high}."
        raise RequestError(message, param="expires_after[seconds]", code="invalid_value")
    return seconds


def write_file(file: StoredFile) -> FileObject:
    """Write a file in OpenAI's words."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at_ms // 1000,
        "expires_at": None if file.expires_at_ms is None else file.expires_at_ms // 1000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }
