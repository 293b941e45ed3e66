"""The hash of what a model computes, remembered, so that half a gigabyte is not read at every start.

What was hashed once is known by the file's place, size, times and inode. Files from our own cache were hashed when
they were fetched; that is used where they were not changed since.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.cache import MANIFEST, file_sha256, read_manifest, write_atomically
from qwenstack.hub.mapped_file import read_file
from qwenstack.hub.model_folder import file_in_folder
from qwenstack.hub.strict_json import as_list, as_object, parse_json_object

_TAG = b"qwenstack checkpoint 1"
_MEMORY_FORMAT = 1
_MAX_MEMORY_BYTES = 1 << 20
_MAX_REMEMBERED = 1024
"""Files of a few dozen models, newest last; 300 bytes each."""
_REST_NS = 2_000_000_000
"""A file that changed less than this before it was hashed may change again without its times showing it: some file
systems count in steps of two seconds. Its hash is not remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """What tells that a file is still the one that was hashed, without reading it."""

    path: str
    """Without links."""
    bytes: int
    device: int
    inode: int
    modified_ns: int
    changed_ns: int
    """The one time that no program can set back."""

    @property
    def last_change_ns(self) -> int:
        """When content or inode changed last."""
        return max(self.modified_ns, self.changed_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointIdentity:
    """The files that a model's arithmetic depends on, as they were when this was taken.

    Take it before the weights are opened: what is hashed later is then proven to be what was opened.
    """

    files: tuple[tuple[str, FileIdentity], ...]
    """In a folder by their names, in order; a file that is a model alone has the name ''."""


def fingerprint_memory() -> Path:
    """Return the file in which this user's fingerprints are remembered."""
    import platformdirs

    return platformdirs.user_cache_path("qwenstack", appauthor=False) / "fingerprints.json"


def identify_checkpoint(path: Path) -> CheckpointIdentity:
    """Return the files of a model that decide its keys and values: weights and `config.json`.

    Tokenizer and chat template are left out: they decide the tokens, which are in the keys of the cache themselves.

    Raises:
        ModelFormatError: there is no such model.
    """
    if not path.is_dir():
        return CheckpointIdentity(files=(("", _identify(path)),))
    if file_in_folder(path, "config.json") is None:
        models = [file for file in path.glob("*.gguf") if file.is_file()]
        if len(models) != 1:
            raise ModelFormatError(f"There is no model in {str(path)!r}, or more than one.")
        return identify_checkpoint(models[0])
    names = {"config.json", *(file.name for file in path.glob("*.safetensors*") if file.is_file())}
    return CheckpointIdentity(files=tuple((name, _identify(path / name)) for name in sorted(names)))


def checkpoint_fingerprint(identity: CheckpointIdentity, memory: Path) -> bytes:
    """Return the SHA-256 that stands for a model's arithmetic, the same wherever its files lie.

    Reads the files, at 1.4 GB/s on one core, unless `memory` knows them; made for a thread of its own.

    Args:
        identity: the model.
        memory: a small JSON file of this user, which is made.

    Raises:
        ModelFormatError: a file changed since it was identified, or cannot be read.
    """
    remembered = _recall(memory)
    began_ns = time.time_ns()
    digests = {file: _sha256(file, remembered) for _, file in identity.files}
    at_rest = {file: digest for file, digest in digests.items() if began_ns - file.last_change_ns > _REST_NS}
    if at_rest.keys() - remembered.keys():
        _remember(memory, remembered, at_rest)
    fields = [_TAG]
    for name, file in identity.files:
        fields += [name.encode(), struct.pack("<Q", file.bytes), bytes.fromhex(digests[file])]
    return hashlib.sha256(b"".join(struct.pack("<Q", len(field)) + field for field in fields)).digest()


def _identify(path: Path) -> FileIdentity:
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except OSError as error:
        raise ModelFormatError(f"Cannot open {str(path)!r}: {error.strerror}.") from error
    return FileIdentity(
        path=str(real),
        bytes=status.st_size,
        device=status.st_dev,
        inode=status.st_ino,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
    )


def _sha256(file: FileIdentity, remembered: Mapping[FileIdentity, str]) -> str:
    known = remembered.get(file) or _recorded_sha256(file)
    try:
        digest = known or file_sha256(Path(file.path))
    except OSError as error:
        raise ModelFormatError(f"Cannot read {file.path!r}: {error.strerror}.") from error
    if _identify(Path(file.path)) != file:
        raise ModelFormatError(f"{file.path!r} changed while the model was loaded; start again.")
    return digest


def _recorded_sha256(file: FileIdentity) -> str | None:
    """Return the hash that the model cache compared when it fetched a file, if nothing touched the file since."""
    path = Path(file.path)
    manifest = path.parent / MANIFEST
    try:
        landed_ns = manifest.stat().st_mtime_ns
        _, files = read_manifest(path.parent)
    except (ModelFormatError, OSError):
        return None
    if file.last_change_ns >= landed_ns:
        return None
    return next((known.sha256 for known in files if (known.name, known.bytes) == (path.name, file.bytes)), None)


def _recall(memory: Path) -> dict[FileIdentity, str]:
    """Return what is remembered; a damaged memory is an empty one."""
    try:
        content = parse_json_object(read_file(memory, _MAX_MEMORY_BYTES), repr(str(memory)))
    except ModelFormatError:
        return {}
    if content.get("format") != _MEMORY_FORMAT:
        return {}
    entries = (_entry(as_object(entry) or {}) for entry in as_list(content.get("files")) or ())
    return dict(entry for entry in entries if entry is not None)


def _entry(fields: Mapping[str, object]) -> tuple[FileIdentity, str] | None:
    path, sha256 = fields.get("path"), fields.get("sha256")
    numbers = {name: fields.get(name) for name in ("bytes", "device", "inode", "modified_ns", "changed_ns")}
    whole = {name: number for name, number in numbers.items() if type(number) is int}
    is_digest = isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
    if not isinstance(path, str) or not is_digest or len(whole) != len(numbers):
        return None
    return FileIdentity(path=path, **whole), str(sha256)


def _remember(memory: Path, before: Mapping[FileIdentity, str], new: Mapping[FileIdentity, str]) -> None:
    """Add hashes; where another process writes at the same time one of the two is lost, and found again."""
    paths = {file.path for file in new}
    kept = {file: digest for file, digest in before.items() if file.path not in paths} | dict(new)
    entries: Sequence[tuple[FileIdentity, str]] = list(kept.items())[-_MAX_REMEMBERED:]
    record = {"format": _MEMORY_FORMAT, "files": [asdict(file) | {"sha256": digest} for file, digest in entries]}
    try:
        memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(record, indent=1).encode())
    except OSError:
        return  # the next start hashes again
