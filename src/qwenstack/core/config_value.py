"""What a setting's value may be, told by its type: reading it from text, checking it, naming the choice in words.

Types understood: `bool`, `int`, `float`, `str`, `Path`, `Literal[...]`, `tuple[X, ...]`, unions of them with or without
None, and any of them in `Annotated[...]` with `Between` limits. Where None is allowed, the word `none` stands for it,
in text and in TOML.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, TypeAlias, Union, cast, get_args, get_origin

TypeForm: TypeAlias = object
"""A type as an annotation spells it; `int | None` is no class, so `type` does not cover it."""

_TRUE_WORDS = frozenset({"true", "1", "yes", "on"})
_FALSE_WORDS = frozenset({"false", "0", "no", "off"})
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*", re.ASCII)
_MAX_DIGITS = 32
"""More digits than any setting needs, and few enough that converting them takes no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """The limits of a number, both included, as a mark in `Annotated`."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"from {self.low} to {self.high}"


class Mismatch(ValueError):  # noqa: N818 - it never leaves the loader, which turns it into a `ConfigError`
    """A value is not of its setting's type or lies outside its limits."""


def convert(value: object, form: TypeForm, *, is_text: bool) -> object:
    """Return `value` as the type that `form` names.

    Args:
        value: what was given.
        form: the type of the setting.
        is_text: the value comes from a place that only knows text (environment, `--set`), so that `"8"` may be 8.

    Raises:
        Mismatch: the value does not fit; `describe(form)` says what would.
    """
    return _check(_read(value, form) if is_text and isinstance(value, str) else value, form)


def describe(form: TypeForm) -> str:
    """Say in words which values a type takes."""
    origin, arguments = get_origin(form), get_args(form)
    if origin is Annotated:
        limits = [str(mark) for mark in arguments[1:] if isinstance(mark, Between)]
        return " ".join([describe(arguments[0]), *limits])
    if origin in (Union, UnionType):
        return ", or ".join(describe(option) for option in sorted(arguments, key=lambda option: option is NoneType))
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        return f"a list, each {describe(arguments[0])}"
    return _WORDS[cast("type", form)]


_WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    NoneType: "'none'",
}


def _read(text: str, form: TypeForm) -> object:
    """Read text as the plain value that TOML would have held; what cannot be read stays text and fails the check."""
    origin, arguments = get_origin(form), get_args(form)
    if origin is Annotated:
        return _read(text, arguments[0])
    if origin in (Union, UnionType):
        readings = (_read(text, option) for option in arguments if option is not NoneType)
        return next((value for value in readings if value != text), text)
    if origin is Literal:
        return next((choice for choice in arguments if str(choice) == text), text)
    if origin is tuple:
        return [_read(item, arguments[0]) if isinstance(item, str) else item for item in _read_list(text)]
    if form in _READERS:
        return _READERS[cast("type", form)](text.strip())
    return text


def _read_list(text: str) -> list[object]:
    """Split at commas; a text that is a JSON array may hold items with commas of their own."""
    if text.lstrip().startswith("["):
        try:
            items: object = json.loads(text)
        except (ValueError, RecursionError):
            raise Mismatch from None
        return cast("list[object]", items)
    return [item.strip() for item in text.split(",") if item.strip()]


def _read_bool(text: str) -> bool | str:
    word = text.lower()
    return True if word in _TRUE_WORDS else False if word in _FALSE_WORDS else text


def _read_int(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) and len(text) <= _MAX_DIGITS else text


def _read_float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


_READERS: Mapping[type, Callable[[str], object]] = {bool: _read_bool, int: _read_int, float: _read_float}


def _check(value: object, form: TypeForm) -> object:
    origin, arguments = get_origin(form), get_args(form)
    if origin is Annotated:
        return _check_limits(_check(value, arguments[0]), arguments[1:])
    if origin in (Union, UnionType):
        if NoneType in arguments and (value is None or value == "none"):
            return None
        return _check_any(value, [option for option in arguments if option is not NoneType])
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_check(item, arguments[0]) for item in cast("list[object]", value))
    elif form is Path:
        return _check_path(value)
    elif form is float:
        return _check_float(value)
    elif isinstance(form, type) and type(value) is form:
        return value
    raise Mismatch


def _check_any(value: object, options: Sequence[TypeForm]) -> object:
    for option in options:
        try:
            return _check(value, option)
        except Mismatch:
            continue
    raise Mismatch


def _check_float(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise Mismatch from None
        if math.isfinite(number):
            return number
    raise Mismatch


def _check_limits(value: object, marks: tuple[object, ...]) -> object:
    for mark in marks:
        if isinstance(mark, Between) and isinstance(value, int | float) and not mark.low <= value <= mark.high:
            raise Mismatch
    return value


def _check_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise Mismatch
    try:
        return Path(value).expanduser()
    except RuntimeError:  # `~someone` where nobody of that name has a home here
        raise Mismatch from None
