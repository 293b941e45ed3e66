"""The folder in which fetched models are kept, shared by all processes of a user.

    <cache>/<slug>/.manifest.json       written last: a model without it is not there
    <cache>/<slug>/<file>
    <cache>/<slug>.partial/             what a stopped pull has so far
    <cache>/.locks/<slug>               held by the process that pulls
    <cache>/auto.json                   what `auto` chose

Files appear whole or not at all, also after a crash: write aside, flush to disk, rename, flush the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenstack.core.errors import ConfigError, DownloadError, ModelFormatError
from qwenstack.hub.mapped_file import read_file
from qwenstack.hub.model_folder import is_plain_name
from qwenstack.hub.progress import Progress
from qwenstack.hub.strict_json import JsonObject, as_list, as_object, parse_json_object

MANIFEST = ".manifest.json"
"""No plain file name, so that no file of a model can take its place."""
MANIFEST_FORMAT = 1
MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """One file of a cached model."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledModel:
    """A model that is on this machine."""

    name: str
    path: Path
    """A .gguf file, or a Hugging Face folder."""
    sha256: str | None
    """Of the file; of a folder, that of the lines `<sha256>  <name>` of its files; None where it was not computed."""
    bytes: int


@dataclass(frozen=True, slots=True)
class ModelCache:
    """Models by their slug, the name of their folder."""

    path: Path

    @classmethod
    def default(cls) -> ModelCache:
        """Return the cache of this user."""
        import platformdirs

        return cls(Path(platformdirs.user_cache_dir("qwenstack", appauthor=False)) / "models")

    def find(self, slug: str) -> PulledModel | None:
        """Return a model if all its files are there with the sizes that were recorded; nothing is hashed.

        Raises:
            ConfigError: the cache belongs to another user.
        """
        if not self.path.is_dir():
            return None
        self._check_owner()
        folder = self.path / slug
        try:
            name, files = read_manifest(folder)
            if any((folder / file.name).stat().st_size != file.bytes for file in files):
                return None
        except (ModelFormatError, OSError):
            # A damaged entry is an absent one: the next pull replaces it.
            return None
        return PulledModel(
            name=name,
            path=folder / files[0].name if len(files) == 1 else folder,
            sha256=combined_sha256(files),
            bytes=sum(file.bytes for file in files),
        )

    def models(self) -> list[PulledModel]:
        """Return all models that are complete, by name."""
        slugs = [folder.name for folder in self.path.iterdir() if folder.is_dir()] if self.path.is_dir() else []
        found = (self.find(slug) for slug in slugs)
        return sorted((model for model in found if model is not None), key=lambda model: model.name)

    def verify(self, slug: str) -> None:
        """Hash every file of a model again.

        Raises:
            ModelFormatError: a file is not what was fetched.
        """
        folder = self.path / slug
        for file in read_manifest(folder)[1]:
            found = file_sha256(folder / file.name)
            if found != file.sha256:
                raise ModelFormatError(
                    f"{str(folder / file.name)!r} is damaged: its SHA-256 is {found}, expected {file.sha256}. "
                    f"Delete the folder {str(folder)!r} and pull the model again."
                )

    @contextlib.contextmanager
    def lock(self, slug: str, progress: Progress) -> Generator[None]:
        """Hold a model for this process alone, waiting for another one that pulls it.

        Raises:
            ConfigError: the cache cannot be written, or belongs to another user.
        """
        self._make()
        locks = self.path / ".locks"
        locks.mkdir(mode=0o700, exist_ok=True)
        # The file stays: removing it would let a third process lock a new one while the second holds the old.
        descriptor = os.open(locks / slug, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say(f"Another process is fetching {slug}; waiting for it.")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def partial(self, slug: str) -> Path:
        """Return the folder for what is not complete yet; to be used under the lock."""
        folder = self.path / f"{slug}.partial"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def land(self, slug: str, name: str, origins: Mapping[Path, str]) -> PulledModel:
        """Move complete files from the partial folder in, and make the model visible; to be used under the lock.

        Args:
            slug: folder of the model.
            name: what the model is called.
            origins: the complete files, in the partial folder, and where each is from, for the record. Their hashes
                have been compared already.

        Raises:
            DownloadError: the files cannot be written.
        """
        folder = self.path / slug
        record: JsonObject = {
            "format": MANIFEST_FORMAT,
            "name": name,
            "pulled_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": [
                {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file), "from": origin}
                for file, origin in origins.items()
            ],
        }
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            for file in origins:
                flush_to_disk(file)
                file.rename(folder / file.name)
            flush_to_disk(folder)
            write_atomically(folder / MANIFEST, json.dumps(record, ensure_ascii=False, indent=1).encode())
            flush_to_disk(self.path)
        except OSError as error:
            raise DownloadError(f"Cannot write to {str(folder)!r}: {error.strerror}.") from error
        shutil.rmtree(self.path / f"{slug}.partial", ignore_errors=True)
        landed = self.find(slug)
        assert landed is not None
        return landed

    def remember_choice(self, slug: str) -> None:
        """Keep what `auto` chose."""
        write_atomically(self.path / "auto.json", json.dumps({"model": slug}).encode())

    def remembered_choice(self) -> str | None:
        """Return what `auto` chose before, if it did."""
        try:
            choice = parse_json_object(read_file(self.path / "auto.json", MAX_MANIFEST_BYTES), "auto.json").get("model")
        except ModelFormatError:
            return None
        return choice if isinstance(choice, str) and is_plain_name(choice) else None

    def _make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"Cannot make the cache folder {str(self.path)!r}: {error.strerror}. "
                "Set QWENSTACK_CACHE_DIR to another one."
            ) from error
        self._check_owner()
        if self.path.stat().st_uid == os.geteuid():
            self.path.chmod(0o700)

    def _check_owner(self) -> None:
        """Refuse a folder that someone else could fill; root's are fine, they serve prepared machines."""
        owner = self.path.stat().st_uid
        if owner not in (os.geteuid(), 0):
            raise ConfigError(
                f"The cache folder {str(self.path)!r} belongs to another user (uid {owner}). "
                "Set QWENSTACK_CACHE_DIR to a folder of your own."
            )


def read_manifest(folder: Path) -> tuple[str, list[CachedFile]]:
    """Return the name of the model in a folder of the cache, and its files as they were when they were fetched.

    Raises:
        ModelFormatError: there is no manifest, or it is damaged.
    """
    path = folder / MANIFEST
    manifest = parse_json_object(read_file(path, MAX_MANIFEST_BYTES), repr(str(path)))
    name = manifest.get("name")
    files = [_cached_file(entry) for entry in as_list(manifest.get("files")) or ()]
    complete = [file for file in files if file is not None]
    if manifest.get("format") != MANIFEST_FORMAT or not isinstance(name, str) or not files or None in files:
        raise ModelFormatError(f"{str(path)!r} is not a manifest. Delete the folder and pull the model again.")
    return name, complete


def _cached_file(entry: object) -> CachedFile | None:
    fields = as_object(entry) or {}
    name, length, sha256 = fields.get("name"), fields.get("bytes"), fields.get("sha256")
    if isinstance(name, str) and is_plain_name(name) and type(length) is int and isinstance(sha256, str):
        return CachedFile(name=name, bytes=length, sha256=sha256)
    return None


def combined_sha256(files: Sequence[CachedFile]) -> str:
    """Return the hash of one file, or one hash for a list of files that does not depend on their order."""
    if len(files) == 1:
        return files[0].sha256
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file that is there whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).rename(path)
    flush_to_disk(path.parent)
