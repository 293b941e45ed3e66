"""JSON from files that may be hostile: no duplicate keys, no NaN, no lone surrogates, bounded depth."""

from __future__ import annotations

import json
import math
from typing import NoReturn, TypeAlias, cast

from qwenstack.core.errors import ModelFormatError

JsonObject: TypeAlias = dict[str, object]

MAX_DEPTH = 64


def parse_json_object(raw: bytes, source: str) -> JsonObject:
    """Parse one JSON object; `source` names it in errors.

    Raises:
        ModelFormatError: the bytes are not exactly one well-formed JSON object, or it is nested too deeply.
    """
    try:
        parsed = json.loads(
            raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_parse_integer
        )
        value = cast("object", parsed)
        _check(value)
    except RecursionError as error:
        raise ModelFormatError(f"{source} is nested deeper than {MAX_DEPTH}.") from error
    except ValueError as error:
        raise ModelFormatError(f"{source} is not valid JSON: {error}.") from error
    members = as_object(value)
    if members is None:
        raise ModelFormatError(f"{source} is not a JSON object, but {type(value).__name__!r}.")
    return members


def as_object(value: object) -> JsonObject | None:
    """Return a parsed value as an object, or None if it is something else."""
    return cast("JsonObject", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    """Return a parsed value as a list, or None if it is something else."""
    return cast("list[object]", value) if isinstance(value, list) else None


def _unique(pairs: list[tuple[str, object]]) -> JsonObject:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} stands twice")
    return unique


def _parse_integer(text: str) -> int | float:
    """Return a whole number; minus zero is none: Rust's parser, and so the safetensors package, reads a float."""
    return -0.0 if text == "-0" else int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check(value: object) -> None:
    """Refuse what Python's parser lets through: depth, infinities such as 1e999, lone surrogates."""
    pending: list[tuple[object, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            item.encode()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError("a number is out of range")
        inside = _inside(item)
        if inside and depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
        pending.extend((member, depth + 1) for member in inside)


def _inside(value: object) -> list[object]:
    members = as_object(value)
    return (as_list(value) or []) if members is None else [*members, *members.values()]
