"""How a pull tells its caller what it does; drawing it is the caller's business."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Someone who wants to know."""

    def say(self, text: str) -> None:
        """Take a sentence for the user."""
        ...

    def bytes(self, done: int, total: int) -> None:
        """Take how far the current download is."""
        ...


class SilentProgress:
    """Nobody wants to know."""

    def say(self, text: str) -> None:
        """Drop it."""

    def bytes(self, done: int, total: int) -> None:
        """Drop it."""
