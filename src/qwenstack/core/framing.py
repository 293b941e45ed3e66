"""Messages between two processes of ours as bytes: four of length, little endian, and a body."""

from __future__ import annotations

import struct

from qwenstack.core.errors import EngineError

MAX_FRAME_BYTES = 64 << 20
"""Above what any step of the engine sends, scored prompts included; a longer frame means that the stream is broken."""
_LENGTH = struct.Struct("<I")


def frame(body: bytes) -> bytes:
    """Return a message's body as bytes for the socket."""
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Cuts a stream of bytes into message bodies, however the bytes arrive."""

    def __init__(self) -> None:
        """Start empty."""
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; return the bodies that are complete now.

        Raises:
            EngineError: a frame claims to be longer than any message can be.
        """
        self._bytes += data
        bodies: list[bytes] = []
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            if length > MAX_FRAME_BYTES:
                raise EngineError(
                    f"A frame of {length} bytes came over the engine's socket; the limit is {MAX_FRAME_BYTES}."
                )
            if len(self._bytes) - start - _LENGTH.size < length:
                break
            start += _LENGTH.size
            bodies.append(bytes(self._bytes[start : start + length]))
            start += length
        del self._bytes[:start]
        return bodies
