"""Reads a form with one file as it comes: short fields are kept, the file's bytes are handed on.

Nothing here is written anywhere, so that whoever uses it decides where the bytes go and when there are too many.
"""

from __future__ import annotations

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from qwenstack.core.errors import RequestError

MAX_PARTS = 8
"""OpenAI's form has four."""
MAX_FIELD_BYTES = 1024
MAX_HEADERS = 8
MAX_HEADER_BYTES = 2048
MAX_FILENAME_CHARS = 255
MAX_BOUNDARY_CHARS = 70
"""RFC 2046, section 5.1.1."""


class FormReader:
    """Takes the bytes of a form in pieces of any size."""

    def __init__(self, content_type: str) -> None:
        """Read the boundary from the content type.

        Raises:
            RequestError: there is none, or it is too long.
        """
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= MAX_BOUNDARY_CHARS:
            raise _wrong(f"its boundary has {len(boundary)} characters; 1 to {MAX_BOUNDARY_CHARS} are read")
        self.fields: dict[str, str] = {}
        """Those that were read to their end."""
        self.filename: str | None = None
        """What the client calls the file; None as long as none has come."""
        self.is_whole = False
        self._num_parts = 0
        self._header, self._value = b"", b""
        self._disposition = b""
        self._field: str | None = None
        self._data = b""
        self._file_data: list[bytes] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_header,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_part,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )

    def feed(self, data: bytes) -> bytes:
        """Read on; return what of it belongs to the file.

        Raises:
            RequestError: it is no form, or has more parts or longer fields than are read.
        """
        try:
            self._parser.write(data)
        except FormParserError:
            raise _wrong("it is damaged") from None
        found, self._file_data = b"".join(self._file_data), []
        return found

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise _wrong(f"it has more than {MAX_PARTS} parts")
        self._disposition, self._field, self._data = b"", None, b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _open_part(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise _wrong("a part has no name")
        if name in self.fields or (name == "file" and self.filename is not None):
            raise _wrong(f"`{name[:40]}` came twice")
        if b"filename" not in options:
            self._field = name
        elif name == "file":
            label = options[b"filename"].decode("utf-8", "replace")
            self.filename = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in label)
            self.filename = self.filename[:MAX_FILENAME_CHARS] or "file"
        else:
            raise _wrong(f"`{name[:40]}` is a file; only `file` may be one")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._file_data.append(data[start:end])
            return
        self._data += data[start:end]
        if len(self._data) > MAX_FIELD_BYTES:
            raise _wrong(f"`{self._field[:40]}` has more than {MAX_FIELD_BYTES} bytes")

    def _end_part(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._data.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_whole = True


def _wrong(reason: str) -> RequestError:
    text = f"The form cannot be read: {reason}. Send `purpose` and one `file` as `multipart/form-data`."
    return RequestError(text, code="invalid_form")
