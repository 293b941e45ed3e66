"""The one reader of JSON that strangers wrote: standard JSON only, bounded in depth, width and number of objects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import cast

import msgspec

from qwenstack.core.errors import RequestError

MAX_DEPTH = 64
MAX_OBJECT_KEYS = 1024
"""Bounds the number of complaints that one object can cause."""
MAX_CONTAINERS = 50_000
"""Bounds the time: 2 MB of empty lists take 0.7 s to build. A thousand messages with tool calls have some 6,000."""

# Possessive, so that it never goes back; it is linear on text whose quotes are known to be balanced.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')


def parse_json(data: bytes) -> object:
    """Read one JSON document; `NaN`, lone surrogates, deep nesting and trailing characters are refused.

    Raises:
        RequestError: the bytes are not standard JSON, or too deep or wide.
    """
    try:
        _check_number_of_containers(data)
        # msgspec reads RFC 8259 and nothing beside it: no NaN, no Infinity, no lone surrogates, no control characters.
        value: object = msgspec.json.decode(data)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise _malformed(f"byte {_first_wrong_byte(data)} is not UTF-8") from None
    except msgspec.MsgspecError as error:
        raise _malformed(_reason(error, data)) from None
    if _may_exceed_limits(data):
        _check_limits(value)
    return value


def parse_json_object(text: str, param: str) -> dict[str, object]:
    """Read a JSON object that a field holds as text.

    Raises:
        RequestError: it is not one; `param` is named.
    """
    try:
        value = parse_json(text.encode())
    except RequestError as error:
        raise RequestError(f"`{param}`: {error}", param=param, code="invalid_value") from error
    return _as_object(value, param)


def parse_call_arguments(text: str, param: str) -> dict[str, object]:
    """Read the arguments of a call that the model made in an earlier turn.

    Returns:
        them by name; where they are not JSON, as of a call that was cut off, their text as `not_json`: whoever made the
        call sees what was wrong with it, whatever its template does with arguments.

    Raises:
        RequestError: they are JSON, but no object; `param` is named.
    """
    try:
        value = parse_json(text.encode() or b"{}")
    except RequestError:
        return {"not_json": text}
    return _as_object(value, param)


def _as_object(value: object, param: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise RequestError(f"`{param}` is not a JSON object.", param=param, code="invalid_value")
    return cast("dict[str, object]", value)


def _first_wrong_byte(data: bytes) -> int:
    """Return where bytes stop being UTF-8; msgspec counts from the beginning of a string."""
    try:
        return len(data.decode())
    except UnicodeDecodeError as error:
        return error.start


def _check_number_of_containers(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= MAX_CONTAINERS:
        return
    msgspec.json.decode(data, type=msgspec.Raw)  # checks the structure and builds nothing
    bare = _STRING.sub(b"", data)
    if bare.count(b"[") + bare.count(b"{") > MAX_CONTAINERS:
        raise RequestError(f"The JSON has more than {MAX_CONTAINERS} lists and objects.", code="invalid_json")


def _may_exceed_limits(data: bytes) -> bool:
    """Spare ordinary documents the walk: with so few brackets and colons no limit can be broken."""
    return data.count(b"[") + data.count(b"{") > MAX_DEPTH or data.count(b":") > MAX_OBJECT_KEYS


def _check_limits(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        if len(fields) > MAX_OBJECT_KEYS:
            raise RequestError(
                f"A JSON object has {len(fields)} keys; at most {MAX_OBJECT_KEYS} are read.", code="invalid_json"
            )
        return fields.values()
    if isinstance(value, list):
        return cast("list[object]", value)
    return ()


def _reason(error: msgspec.MsgspecError, data: bytes) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    if "surrogate" in text or (text == "Input data was truncated" and b"\\ud" in data.lower()):
        return "it ends too early, or a `\\ud8xx` escape stands without its other half (a lone surrogate)"
    return text[:1].lower() + text[1:]


def _malformed(reason: str) -> RequestError:
    return RequestError(f"The body is not valid JSON: {reason}.", code="invalid_json")


def _too_deep() -> RequestError:
    return RequestError(f"The JSON is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
