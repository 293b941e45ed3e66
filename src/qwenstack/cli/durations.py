"""Lengths of time as users write them: `90d`, `12h`, `30m`, `45s`."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds_of(text: str) -> int | None:
    """Return the seconds; None where it is no length of time, or none at all."""
    found = _DURATION.fullmatch(text)
    return int(found[1]) * _SECONDS[found[2]] or None if found else None
