"""Server-sent events as bytes."""

from __future__ import annotations

import msgspec

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment; clients ignore it, and what sits between sees that the stream lives."""

_ENCODER = msgspec.json.Encoder()


def encode_event(payload: object) -> bytes:
    """Encode one event; JSON has no raw line ends, so it is always one `data:` line."""
    return b"data: " + _ENCODER.encode(payload) + b"\n\n"
