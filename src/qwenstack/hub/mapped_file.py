"""The one way in which model files are opened: mapped into memory, read only."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import cast

import numpy as np

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.stored_tensor import Bytes


def map_file(path: Path) -> Bytes:
    """Map a file; its memory is given back when the last array over it is dropped.

    Raises:
        ModelFormatError: there is no such regular file, it is empty, or it may not be read.
    """
    try:
        # O_NONBLOCK: a named pipe put in the place of a model must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ModelFormatError(f"Cannot open {str(path)!r}: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFormatError(f"{str(path)!r} is not a regular file. Name a .gguf or .safetensors file.")
        if status.st_size == 0:
            raise ModelFormatError(f"{str(path)!r} is empty. Fetch the file again.")
        mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    return np.frombuffer(mapping, dtype=np.uint8)


def release_pages(data: Bytes) -> None:
    """Give back the memory of a mapped file's bytes; whoever reads them again has them from the file once more.

    Bytes that lie elsewhere, and pages that lie in the range only in part, are left alone.
    """
    mapping: object = data
    while isinstance(mapping, np.ndarray):
        mapping = cast("object", mapping.base)
    if isinstance(mapping, memoryview):
        mapping = mapping.obj
    if not isinstance(mapping, mmap.mmap):
        return
    offset = data.ctypes.data - np.frombuffer(mapping, dtype=np.uint8).ctypes.data
    start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (offset + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        mapping.madvise(mmap.MADV_DONTNEED, start, end - start)


def read_file(path: Path, limit_bytes: int) -> bytes:
    """Read a small file whole.

    Raises:
        ModelFormatError: as `map_file`, or the file is larger than the limit.
    """
    data = map_file(path)
    if len(data) > limit_bytes:
        raise ModelFormatError(f"{str(path)!r} has {len(data)} bytes; at most {limit_bytes} are read.")
    return data.tobytes()
