"""Typed reads from a mapping that somebody else wrote: a `config.json`, or the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from qwenstack.core.errors import ModelFormatError


class MetadataFields:
    """Reads that say what type they expect, and name the key where the mapping holds something else.

    Raises:
        ModelFormatError: (every read) the key is missing without a default, or its value has another type.
    """

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        """Read from `values`; `where` names them in errors."""
        self.values = values
        self.where = where

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelFormatError(f"`{key}` is missing in {self.where}.")
        return value

    def integer(self, key: str, *, default: int | None = None) -> int:
        """Return a whole number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelFormatError(f"`{key}` in {self.where} is {value!r}; it must be a whole number.")
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """Return a number as float."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFormatError(f"`{key}` in {self.where} is {value!r}; it must be a number.")
        try:
            return float(value)
        except OverflowError as error:
            raise ModelFormatError(f"`{key}` in {self.where} is too large for a number.") from error

    def text(self, key: str) -> str:
        """Return text."""
        value = self._get(key, None)
        if not isinstance(value, str):
            raise ModelFormatError(f"`{key}` in {self.where} is {value!r}; it must be text.")
        return value

    def items(self, key: str) -> Sequence[object]:
        """Return a list; an absent one is empty."""
        value = self._get(key, ())
        if not isinstance(value, list | tuple):
            raise ModelFormatError(f"`{key}` in {self.where} is {value!r}; it must be a list.")
        return cast("Sequence[object]", value)

    def section(self, key: str) -> MetadataFields | None:
        """Return the reads of a nested object; None where it is absent or empty."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ModelFormatError(f"`{key}` in {self.where} is {value!r}; it must be an object.")
        nested = cast("Mapping[str, object]", value)
        return MetadataFields(nested, f"`{key}` of {self.where}") if nested else None

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise ModelFormatError(f"`{key}` in {self.where} is {value!r}; it must be true or false.")
        return value
