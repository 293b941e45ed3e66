"""Reads the input file of a batch: every line is checked before the first is answered, and found again by its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from qwenstack.core.errors import RequestError
from qwenstack.serving.strict_json import parse_json
from qwenstack.serving.wire.batches import BatchLine, LineError, line_error
from qwenstack.serving.wire.errors import answer_error
from qwenstack.serving.wire.validation import ValidationFailure, read_body

MAX_LINES = 50_000
"""As OpenAI's."""
MAX_ERRORS = 50
"""Wrong lines that are told; who has that many fixes the program that wrote them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePlace:
    """Where a line is in its file."""

    number: int
    """The first is 1."""
    offset: int
    num_bytes: int
    custom_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLines:
    """The lines of a file, or what is wrong with them."""

    places: list[LinePlace]
    errors: list[LineError]


def check_lines(content: BinaryIO, *, endpoint: str, max_line_bytes: int) -> InputLines:
    """Check every line, up to `MAX_ERRORS` wrong ones; empty lines are none."""
    places: list[LinePlace] = []
    errors: list[LineError] = []
    seen: set[str] = set()
    for number, offset, data in _lines_of(content, max_line_bytes):
        if len(errors) >= MAX_ERRORS:
            break
        try:
            if len(places) >= MAX_LINES:
                raise RequestError(f"The file has more than {MAX_LINES} requests.", code="too_many_requests")
            line = _read(data, endpoint=endpoint, max_line_bytes=max_line_bytes)
            if line.custom_id in seen:
                text = f"`custom_id` {line.custom_id[:80]!r} is that of an earlier line; give each its own."
                raise RequestError(text, param="custom_id", code="duplicate_custom_id")
        except (RequestError, ValidationFailure) as error:
            errors.append(line_error(number, answer_error(error, request_id="").detail))
            if len(places) >= MAX_LINES:
                break
            continue
        seen.add(line.custom_id)
        places.append(LinePlace(number=number, offset=offset, num_bytes=len(data), custom_id=line.custom_id))
    if not places and not errors:
        errors.append({"code": "empty_file", "line": None, "message": "The file has no requests.", "param": None})
    return InputLines(places=places, errors=errors)


def find_lines(content: BinaryIO) -> list[LinePlace]:
    """Return the places of the lines of a file that was checked before."""
    longest = os.fstat(content.fileno()).st_size
    return [
        LinePlace(number=number, offset=offset, num_bytes=len(data), custom_id=_id_decoder.decode(data).custom_id)
        for number, offset, data in _lines_of(content, longest)
    ]


class _NamedLine(msgspec.Struct):
    custom_id: str


_id_decoder = msgspec.json.Decoder(_NamedLine)


def read_line_body(content: BinaryIO, place: LinePlace) -> object:
    """Return what a line, which was checked, asks."""
    document = parse_json(os.pread(content.fileno(), place.num_bytes, place.offset))
    return read_body(BatchLine, document).body


def _lines_of(content: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, place and bytes of each line; of one that is too long, a byte more than it may have."""
    offset = number = 0
    content.seek(0)
    while data := content.readline(max_line_bytes + 1):
        number += 1
        num_bytes = len(data)
        if data.strip():
            yield number, offset, data
        while not data.endswith(b"\n") and (data := content.readline(max_line_bytes)):
            num_bytes += len(data)
        offset += num_bytes


def _read(data: bytes, *, endpoint: str, max_line_bytes: int) -> BatchLine:
    if len(data) > max_line_bytes:
        raise RequestError(f"The line has more than {max_line_bytes} bytes.", code="line_too_long")
    line = read_body(BatchLine, parse_json(data))
    if line.url != endpoint:
        text = f"`url` is {line.url[:80]!r}; all requests of this batch go to {endpoint!r}."
        raise RequestError(text, param="url", code="mismatched_url")
    return line
