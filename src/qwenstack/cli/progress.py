"""Progress on standard error: a bar in a terminal, a line for each tenth in a log."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class DownloadProgress:
    """Tells a person how far a download is; appears only if there is something to tell."""

    def __init__(self) -> None:
        """Draw a bar where standard error is a terminal."""
        self._is_terminal = sys.stderr.isatty()
        self._bar: tuple[Progress, TaskID] | None = None
        self._logged_tenths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def say(self, text: str) -> None:
        """Print a line; above the bar, if there is one."""
        if self._bar is None:
            sys.stderr.write(f"{text}\n")
        else:
            self._bar[0].console.print(text, markup=False, highlight=False)

    def bytes(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are there."""
        if self._is_terminal:
            progress, task = self._bar = self._bar or _start_bar()
            progress.update(task, completed=done, total=total)
        elif total:
            tenths = 10 * done // total
            if tenths > self._logged_tenths:
                sys.stderr.write(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB\n")
            self._logged_tenths = tenths


def _start_bar() -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    progress = Progress(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    progress.start()
    return progress, progress.add_task("", total=None)
