"""Names of cached blocks."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence


def child_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the key of the block that follows `parent` with these tokens."""
    return hashlib.sha256(parent + struct.pack(f"<{len(token_ids)}q", *token_ids)).digest()
