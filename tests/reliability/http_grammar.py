"""What a stream of bytes means by RFC 9112, read as strictly as it allows: the measure of what a server may see in it.

Wherever two readers could disagree, the reading ends: nothing after that point may be taken for a request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Section 3 lets readers take several spaces for one, and they do.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) +(\S+) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
# Section 7.1.1 has readers take white space before the semicolon; a reader that refuses it sees less, never more.
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[^\r\n\x00]*)?")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*")
_TOO_LONG_DIGITS = 19
"""A length of so many digits overflows 64 bits."""

Fields = dict[str, list[bytes]]


class MalformedError(Exception):
    """From here on readers may differ, or something is missing."""


@dataclass(frozen=True, slots=True)
class Understood:
    """A request whose head every reader finds at the same place."""

    method: str
    target: str
    body: str
    """As far as it is there."""
    is_whole: bool = True
    """Whether the body is right to its end."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The head of a final answer."""

    status: int
    request_id: bytes
    """Empty where the application did not see the request."""


def read_requests(data: bytes) -> list[Understood]:
    """Return the requests before the first place that is wrong or ambiguous; of the last one the body may be cut."""
    requests: list[Understood] = []
    at: int | None = 0
    while at is not None:
        try:
            method, target, version, fields, at = _read_head(data, at)
            _check_framing(fields)
        except MalformedError:
            break
        body, at = _read_body(data, at, fields)
        requests.append(Understood(method, target, body.decode("latin-1"), is_whole=at is not None))
        is_another_protocol = "upgrade" in fields or method == "CONNECT"
        ends = version == "1.0" or b"close" in b",".join(fields.get("connection", [])).lower()
        at = None if is_another_protocol or ends else at
    return requests


def read_answers(data: bytes, methods: Sequence[str]) -> list[AnswerHead]:
    """Return the heads of final answers to requests with these methods; the last one may be cut.

    Raises:
        MalformedError: something else stands between or within them.
    """
    answers: list[AnswerHead] = []
    at: int | None = 0
    while at is not None and at < len(data):
        end = data.find(b"\r\n\r\n", at)
        line = data[at : data.find(b"\r\n", at)]
        found = _STATUS_LINE.fullmatch(line)
        if found is None and end >= 0:
            raise MalformedError(f"{line[:80]!r} is no status line")
        if end < 0:
            break  # cut
        status = int(found[1]) if found else 0
        fields, at = _read_fields(data, data.find(b"\r\n", at) + 2)
        if status == 100:
            continue
        has_body = methods[len(answers) : len(answers) + 1] != ["HEAD"] and status not in {204, 304}
        answers.append(AnswerHead(status, fields.get("x-request-id", [b""])[0]))
        if has_body:
            _, at = _read_body(data, at, fields, must_be_right=True)
    return answers


def _read_head(data: bytes, at: int) -> tuple[str, str, str, Fields, int]:
    while data[at : at + 1] in {b"\r", b"\n"}:  # section 2.2: empty lines before a request are to be overlooked
        at += 1
    line, at = _read_line(data, at)
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise MalformedError
    fields, at = _read_fields(data, at)
    return found[1].decode(), found[2].decode("latin-1"), line[-3:].decode(), fields, at


def _read_line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", at)
    line = data[at:end]
    if end < 0 or b"\n" in line or b"\r" in line:
        raise MalformedError
    return line, end + 2


def _read_fields(data: bytes, at: int) -> tuple[Fields, int]:
    fields: Fields = {}
    while True:
        line, at = _read_line(data, at)
        if not line:
            return fields, at
        found = _FIELD.fullmatch(line)
        if found is None:
            raise MalformedError
        fields.setdefault(found[1].decode().lower(), []).append(found[2])


def _read_trailers(data: bytes, at: int) -> int:
    fields, at = _read_fields(data, at)
    if not fields.keys().isdisjoint({"content-length", "transfer-encoding"}):  # section 6.5.1: not there
        raise MalformedError
    return at


def _check_framing(fields: Fields) -> None:
    lengths, codings = fields.get("content-length", []), fields.get("transfer-encoding", [])
    if codings and (lengths or len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise MalformedError
    if len(lengths) > 1 or any(not each.isdigit() or len(each) >= _TOO_LONG_DIGITS for each in lengths):
        raise MalformedError


def _read_body(data: bytes, at: int, fields: Fields, *, must_be_right: bool = False) -> tuple[bytes, int | None]:
    """Return a body as far as it is there, and where it ends; None: nowhere."""
    if "transfer-encoding" in fields:
        return _read_chunks(data, at, must_be_right=must_be_right)
    end = at + int(fields.get("content-length", [b"0"])[0])
    return data[at:end], end if end <= len(data) else None


def _read_chunks(data: bytes, at: int, *, must_be_right: bool) -> tuple[bytes, int | None]:
    body = b""
    while True:
        try:
            line, start = _read_line(data, at)
            found = _CHUNK_SIZE.fullmatch(line)
            if found is None:
                raise MalformedError(f"{line[:80]!r} is no chunk size")
            size = int(found[1], 16)
            if size == 0:
                return body, _read_trailers(data, start)
            body += data[start : start + size]
            at = start + size + 2
            if data[at - 2 : at] != b"\r\n"[: len(data) - at + 2]:
                raise MalformedError(f"a chunk ends in {data[at - 2 : at]!r}")
            if at > len(data):
                return body, None
        except MalformedError:
            is_cut = b"\r\n" not in data[at:]
            if must_be_right and not is_cut:
                raise
            return body, None
