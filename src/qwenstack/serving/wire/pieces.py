"""Long JSON documents in pieces, so that nothing holds up all else for as long as the whole of one takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import msgspec

PIECE_BYTES = 256 << 10
"""What a socket takes at once here; to write the 43 MB of 2,048 vectors in one piece copies them for 60 ms."""


def encode_in_pieces(document: Mapping[str, object], long_field: str) -> list[bytes]:
    """Encode an object one of whose fields is a long list, item by item; other threads have their turn between two.

    The long field comes first, and there is another one.
    """
    rest = {name: value for name, value in document.items() if name != long_field}
    pieces: list[bytes] = []
    piece = bytearray(b"{" + msgspec.json.encode(long_field) + b":[")
    comma = b""
    for item in cast("Iterable[object]", document[long_field]):
        piece += comma
        piece += msgspec.json.encode(item)
        comma = b","
        if len(piece) >= PIECE_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
    piece += b"]," + msgspec.json.encode(rest)[1:]
    return [*pieces, bytes(piece)]
