"""All rows, by their id."""

from __future__ import annotations

from collections.abc import Mapping

from reliability import disconnects, durability, framing, load, overload, rest_fuzz, slow_clients
from reliability.verdict import Row

_ROWS = (
    load.L1,
    load.L2,
    overload.L4,
    slow_clients.L6,
    overload.L7,
    slow_clients.C8,
    disconnects.C9,
    durability.D3,
    durability.D4,
    rest_fuzz.F4,
    framing.F8,
)
ROWS: Mapping[str, Row] = {row.id: row for row in _ROWS}
