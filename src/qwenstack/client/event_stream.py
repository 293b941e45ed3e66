"""Server-sent events, cut out of bytes however they arrive."""

from __future__ import annotations

from qwenstack.client.errors import UnreadableAnswerError

DONE = b"[DONE]"
MAX_EVENT_BYTES = 64 << 20
"""A whole response of OpenAI's is one event; nothing that our servers send is longer."""


class EventReader:
    """Collects bytes; returns the data of the events that are complete."""

    def __init__(self) -> None:
        """Start empty."""
        self._rest = bytearray()
        """The beginning of a line."""
        self._data: list[bytes] = []
        """The lines of an event that has not ended."""
        self._num_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes; return the data of each event that ended within them.

        Raises:
            UnreadableAnswerError: an event has no end.
        """
        events: list[bytes] = []
        first, *others = chunk.split(b"\n")
        self._rest += first
        self._num_bytes += len(first)
        for other in others:
            line = bytes(self._rest).removesuffix(b"\r")
            self._rest = bytearray(other)
            self._num_bytes += len(other)
            if not line:
                events += [b"\n".join(self._data)] if self._data else []
                self._data.clear()
                self._num_bytes = len(other)
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        if self._num_bytes > MAX_EVENT_BYTES:
            raise UnreadableAnswerError(f"The stream has an event of more than {MAX_EVENT_BYTES} bytes.")
        return events
