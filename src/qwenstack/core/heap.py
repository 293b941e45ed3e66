"""What Python's garbage collector need not look at."""

from __future__ import annotations

import gc


def keep_what_is_here() -> None:
    """Have the collector pass over all that this process has made so far, which lives as long as the process.

    A server's modules, models and routes are some 150,000 objects that it tracks. To look through them took 160 to
    200 ms every 20 s at 200 requests a second, in which no stream got a token (docs/lab-notes.md).
    """
    gc.freeze()
