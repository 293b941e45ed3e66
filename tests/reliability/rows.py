"""All rows, by their id."""

from __future__ import annotations

from collections.abc import Mapping

from reliability import disconnects, framing, load
from reliability.verdict import Row

ROWS: Mapping[str, Row] = {row.id: row for row in (load.L1, load.L2, disconnects.C9, framing.F8)}
