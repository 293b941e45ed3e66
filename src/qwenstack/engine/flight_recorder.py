"""Which requests the engine was computing when it died: a page of memory that two processes share.

The server makes the memory and keeps it; the worker writes to it before each step; after the worker's death the server
reads what was left there. A write is a few microseconds and needs nobody's answer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from collections.abc import Generator, Sequence

import msgspec

_SIZE_BYTES = 1 << 20
"""4,096 sequences, the most that a step runs, with ids of 250 bytes; pages that nobody writes to take no memory."""
_LENGTH = struct.Struct("<I")
_EVERYONE = 0xFFFF_FFFF
"""In place of a length: it is not known who, so it may be anyone."""


class FlightRecorder:
    """The ids of the requests that are computed now; an engine's `StepRecorder`."""

    def __init__(self, fd: int) -> None:
        """Map memory that `shared_memory` gave."""
        self._memory = mmap.mmap(fd, _SIZE_BYTES)

    def computing(self, request_ids: Sequence[str]) -> None:
        """Note these; the length is written last, so that a death in between leaves nobody."""
        body = msgspec.msgpack.encode(list(dict.fromkeys(request_ids)))
        if len(body) > _SIZE_BYTES - _LENGTH.size:
            self.anyone()
            return
        self.nobody()
        self._memory[_LENGTH.size : _LENGTH.size + len(body)] = body
        self._write_length(len(body))

    def anyone(self) -> None:
        """Note that any request may be at work: a step has begun and has not chosen yet."""
        self._write_length(_EVERYONE)

    def nobody(self) -> None:
        """Note that nothing is computed."""
        self._write_length(0)

    def read(self) -> frozenset[str] | None:
        """Return the ids that were noted last; None: anyone."""
        (length,) = _LENGTH.unpack_from(self._memory)
        if length == 0:
            return frozenset()
        body = self._memory[_LENGTH.size : _LENGTH.size + length]
        try:
            return None if length == _EVERYONE else frozenset(msgspec.msgpack.decode(body, type=list[str]))
        except (msgspec.DecodeError, UnicodeDecodeError):  # a process that dies may have written anywhere
            return None

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()

    def _write_length(self, length: int) -> None:
        _LENGTH.pack_into(self._memory, 0, length)


@contextlib.contextmanager
def shared_memory() -> Generator[int]:
    """Give the descriptor of new memory that a child process can inherit; what was mapped outlives it."""
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("qwenstack-flight-recorder"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, as the other
    with file:
        file.truncate(_SIZE_BYTES)
        yield file.fileno()
