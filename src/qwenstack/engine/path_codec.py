"""Paths in messages and journals: as text, since neither MessagePack nor JSON knows them."""

from __future__ import annotations

from pathlib import Path


def encode_path(value: object) -> str:
    """Return a path as text; an `enc_hook` of msgspec."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value)} is neither sent nor written")


def decode_path(kind: type, value: object) -> object:
    """Return a path from its text; a `dec_hook` of msgspec."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} is neither received nor read")
