"""A journal of what went into the engine and of what came out, so that a session can be run again step for step.

JSON lines, one record each, told apart by `type`:

    session   a process begins: model, its fingerprint, engine configuration, versions
    admitted  a request with its prompt, parameters, options and the seed that it runs with, before step `step`
    aborted   somebody gave a request up, before step `step`
    adapter_loaded, adapter_unloaded   what requests may name changed, before step `step`
    finished  an answer ended in step `step`: how, how many tokens, and their digest

A request without its `finished` and `aborted` was running when the process died. A line that a death cut short stands
last or before the next `session`. The file holds prompts: it is made for its owner alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from qwenstack.core.errors import ConfigError
from qwenstack.core.outputs import FinishReason
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.hooks import SILENT, Journal
from qwenstack.engine.loading import LoadedModel
from qwenstack.engine.path_codec import decode_path, encode_path
from qwenstack.hub.fingerprint import checkpoint_fingerprint, fingerprint_memory, identify_checkpoint

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when a record changes its meaning."""
_MAX_FILE_BYTES = 64 << 20
"""About 10,000 requests of 1,000 prompt tokens; small enough to send to somebody."""
_NUM_OLD_FILES = 3
"""Kept beside the current one as `.1`, the youngest, to `.3`: 256 MiB in all."""
_FIRST_BYTES = b'{"type":"session",'


class Session(msgspec.Struct, tag="session", frozen=True, kw_only=True):
    """A process, or a new file of the same process."""

    format: int = FORMAT
    model_name: str
    model_fingerprint: str
    """`journal.model_fingerprint` of the files."""
    config: EngineConfig
    """As it was, but with the context length that came of it, so that it does not depend on free memory again."""
    kernels: str
    versions: dict[str, str]
    started: str
    """When, in UTC."""
    step: int = 0
    """The first step that this file knows of; above 0 where the file before it was full."""


class Admitted(msgspec.Struct, tag="admitted", frozen=True):
    """A request was queued."""

    step: int
    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    options: RequestOptions
    seed: int


class Aborted(msgspec.Struct, tag="aborted", frozen=True):
    """A request was given up."""

    step: int
    request_id: str


class AdapterLoaded(msgspec.Struct, tag="adapter_loaded", frozen=True):
    """Requests may name an adapter from now on."""

    step: int
    name: str
    path: Path
    digest: str


class AdapterUnloaded(msgspec.Struct, tag="adapter_unloaded", frozen=True):
    """Requests may not name an adapter any more."""

    step: int
    name: str


class Finished(msgspec.Struct, tag="finished", frozen=True):
    """An answer ended."""

    step: int
    request_id: str
    index: int
    finish_reason: FinishReason
    num_tokens: int
    digest: str
    """`token_digest` of its tokens."""


Record = Session | Admitted | Aborted | AdapterLoaded | AdapterUnloaded | Finished


_encoder = msgspec.json.Encoder(enc_hook=encode_path)
_decoder = msgspec.json.Decoder(Record, dec_hook=decode_path)


def open_journal(model: LoadedModel) -> Journal:
    """Return the journal that the configuration asks for, or one that does nothing.

    Raises:
        ConfigError: its file cannot be written, or is something else.
    """
    path = model.config.journal_path
    if path is None:
        return SILENT
    session = Session(
        model_name=model.card.id,
        model_fingerprint=model_fingerprint(model.config.model_path),
        config=replace(model.config, max_model_len=model.card.max_model_len),
        kernels=model.decoder.kernels.name,
        versions={
            "qwenstack": version("qwenstack"),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return RequestJournal(path, session)


class RequestJournal:
    """Appends to a file; an engine's `Journal`. A full disk ends the journal, never the engine."""

    def __init__(self, path: Path, session: Session, *, max_file_bytes: int = _MAX_FILE_BYTES) -> None:
        """Begin a session at the end of the file.

        Raises:
            ConfigError: the file cannot be written, or is not a journal.
        """
        self._path = path
        self._session = session
        self._max_file_bytes = max_file_bytes
        try:
            self._fd: int | None = _open_for_appending(path)
        except OSError as error:
            raise ConfigError(
                f"`journal_path` is {str(path)!r}, which cannot be written: {error.strerror}. "
                "Name a file in a folder that exists."
            ) from error
        self._num_bytes = os.fstat(self._fd).st_size
        self._adapters: dict[str, AdapterLoaded] = {}
        """Those that are loaded now; each file says so again, so that it can be run on its own."""
        self._write(session)

    def admitted(
        self,
        step: int,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        options: RequestOptions,
        seed: int,
    ) -> None:
        """See `Journal.admitted`."""
        self._write(Admitted(step, request_id, list(prompt_token_ids), params, options, seed))

    def aborted(self, step: int, request_id: str) -> None:
        """See `Journal.aborted`."""
        self._write(Aborted(step, request_id))

    def finished(
        self, step: int, request_id: str, index: int, token_ids: Sequence[int], finish_reason: FinishReason
    ) -> None:
        """See `Journal.finished`."""
        self._write(Finished(step, request_id, index, finish_reason, len(token_ids), token_digest(token_ids)))

    def adapter_loaded(self, step: int, name: str, path: Path, digest: str) -> None:
        """See `Journal.adapter_loaded`."""
        record = AdapterLoaded(step, name, path, digest)
        self._write(record)
        self._adapters[name] = record

    def adapter_unloaded(self, step: int, name: str) -> None:
        """See `Journal.adapter_unloaded`."""
        self._write(AdapterUnloaded(step, name))
        self._adapters.pop(name, None)

    def close(self) -> None:
        """Close the file; nothing is written any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, record: Record) -> None:
        if self._fd is None:
            return
        line = _encoder.encode(record) + b"\n"
        try:
            if not isinstance(record, Session) and self._num_bytes + len(line) > self._max_file_bytes:
                self._begin_new_file(record.step)
            _write_whole(self._fd, line)
        except OSError as error:
            logger.error("The journal %r ends here: %s.", str(self._path), error.strerror)
            self.close()
            return
        self._num_bytes += len(line)

    def _begin_new_file(self, step: int) -> None:
        assert self._fd is not None
        for number in range(_NUM_OLD_FILES, 0, -1):
            older = self._path if number == 1 else _numbered(self._path, number - 1)
            if older.exists():
                older.replace(_numbered(self._path, number))
        os.close(self._fd)
        self._fd = None
        self._fd = _open_for_appending(self._path)
        records: list[Record] = [msgspec.structs.replace(self._session, step=step)]
        records += [msgspec.structs.replace(record, step=step) for record in self._adapters.values()]
        header = b"".join(_encoder.encode(record) + b"\n" for record in records)
        _write_whole(self._fd, header)
        self._num_bytes = len(header)


class JournalError(ConfigError):
    """A journal cannot be read; names file and line."""


def read_journal(path: Path) -> Iterator[Record]:
    """Yield the records of a file, without the lines that a death cut short.

    Raises:
        JournalError: the file cannot be read, or a line is none of a journal's.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise JournalError(f"The journal {str(path)!r} cannot be read: {error.strerror}.") from error
    if not lines[0].startswith(_FIRST_BYTES):
        raise JournalError(f"{str(path)!r} is not a journal: it does not begin with a session.")
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            yield _decoder.decode(line)
        except msgspec.MsgspecError as error:
            following = next((later for later in lines[number + 1 :] if later), _FIRST_BYTES)
            if not following.startswith(_FIRST_BYTES):
                raise JournalError(f"Line {number + 1} of {str(path)!r} is not a journal's: {error}") from error


def token_digest(token_ids: Sequence[int]) -> str:
    """Return the SHA-256 of token ids as little-endian int32, in hexadecimal."""
    return hashlib.sha256(np.asarray(token_ids, "<i4").tobytes()).hexdigest()


def model_fingerprint(path: Path) -> str:
    """Return `checkpoint_fingerprint` of a model's files in hexadecimal; what was hashed before is remembered."""
    return checkpoint_fingerprint(identify_checkpoint(path), fingerprint_memory()).hex()


def _open_for_appending(path: Path) -> int:
    """Open a journal, or make one, that its owner alone can read.

    Raises:
        OSError: it cannot be opened.
        ConfigError: there is something else at that place.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        status = os.fstat(fd)
        beginning = os.pread(fd, len(_FIRST_BYTES), 0) if stat.S_ISREG(status.st_mode) else b"?"
        if not _FIRST_BYTES.startswith(beginning):
            raise ConfigError(f"`journal_path` is {str(path)!r}, which is not a journal. Name a new file.")
        os.fchmod(fd, 0o600)
        if status.st_size and os.pread(fd, 1, status.st_size - 1) != b"\n":
            _write_whole(fd, b"\n")  # the process before died while it wrote
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_whole(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    if written < len(data):
        raise OSError(0, "the disk is full")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
