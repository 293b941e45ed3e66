"""Files on this machine: what calls send, and where answers are written."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import IO

from qwenstack.client.call import Upload

_MAX_PREFIX_CHARS = 40
"""Four bytes each are well below the 255 that a name may have."""


@contextlib.contextmanager
def opened(uploads: Mapping[str, Upload]) -> Generator[dict[str, tuple[str, bytes | IO[bytes]]]]:
    """Open what is sent, as httpx takes it: by field, a name and the content.

    Raises:
        OSError: a file cannot be read.
    """
    with contextlib.ExitStack() as stack:

        def content_of(upload: Upload) -> bytes | IO[bytes]:
            content = upload.content
            return stack.enter_context(content.open("rb")) if isinstance(content, Path) else content

        yield {field: (upload.name, content_of(upload)) for field, upload in uploads.items()}


@contextlib.contextmanager
def new_file(path: Path) -> Generator[IO[bytes]]:
    """Open a file that takes its name, and the place of another, when it is whole; else nothing of it stays.

    Raises:
        OSError: it cannot be written.
    """
    prefix = f".{path.name[:_MAX_PREFIX_CHARS]}."
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, delete=False) as file:
        part = Path(file.name)
        try:
            yield file
            file.flush()
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
