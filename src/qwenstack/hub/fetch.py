"""The one place that speaks HTTP to a hub.

Plain httpx and not the hubs' own client packages: both hubs then obey the same rules for time, size, redirects and
tokens, nothing is cached or reported behind our back, and a stopped file goes on from the other hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast

import httpx

from qwenstack.core.errors import ConfigError, DownloadError
from qwenstack.hub.remote_model import RemoteFile

logger = logging.getLogger(__name__)

MAX_LISTING_BYTES = 32 << 20
MAX_REDIRECTS = 5
MAX_ATTEMPTS = 6
"""Without a single new byte in between."""
MAX_WAIT_S = 30.0
_CHUNK_BYTES = 1 << 20
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class HubStatusError(DownloadError):
    """A hub refused a request for good."""

    def __init__(self, message: str, status: int) -> None:
        """Keep the status beside the message."""
        super().__init__(message)
        self.status = status


class _TransientError(Exception):
    """Worth another attempt."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        """Keep for how long the hub asks to wait."""
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A hub's address and the token that it, and nobody else, may see.

    Raises:
        ConfigError: the address is not https (http is for loopback only).
    """

    url: str
    token: str | None = None

    def __post_init__(self) -> None:
        """Refuse an address over which a token could leak."""
        try:
            safe = _is_safe(httpx.URL(self.url))
        except httpx.InvalidURL:
            safe = False
        if not safe:
            raise ConfigError(f"The hub's address is {self.url!r}; it must start with 'https://'.")


class Fetcher:
    """Fetches listings and files of one hub; to be closed."""

    def __init__(
        self, endpoint: Endpoint, *, timeout_s: float = 30.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Open no connection yet."""
        self.endpoint = endpoint
        self._origin = _origin(httpx.URL(endpoint.url))
        self._sleep = sleep
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout_s),
            # Redirects are followed by hand: each hop is checked and the token stays at home.
            follow_redirects=False,
            headers={"User-Agent": "qwenstack", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def url(self, path: str) -> str:
        """Return the address of a path on the hub."""
        return f"{self.endpoint.url.rstrip('/')}/{path}"

    def json(self, path: str, *, attempts: int = MAX_ATTEMPTS) -> object:
        """Fetch a listing.

        Raises:
            HubStatusError: the hub refused.
            DownloadError: the hub cannot be reached, or answers nonsense.
        """
        url = self.url(path)
        failures = 0
        while True:
            try:
                return self._read_json(url)
            except _TransientError as error:
                failures += 1
                self._wait_or_give_up(error, url, failures, attempts)

    def file(self, remote: RemoteFile, folder: Path, on_bytes: Callable[[int], None]) -> Path:
        """Fetch a file into a folder, going on where a stopped attempt ended, and compare its hash.

        Args:
            remote: what to fetch.
            folder: where; the part that is there is named by its hash, so that it can only go on as the same file.
            on_bytes: hears how many bytes of the file are there.

        Raises:
            HubStatusError: the hub refused.
            DownloadError: the hub cannot be reached, or the hash is not the one it stated; the bytes are deleted.
        """
        part = folder / f"{remote.digest.hexadecimal}.part"
        try:
            part.touch(mode=0o600)
            self._complete(remote, part, on_bytes)
            found = file_digest(part, remote.digest.algorithm)
            if found != remote.digest.hexadecimal:
                part.unlink()
                raise DownloadError(
                    f"{remote.name!r} has the {remote.digest.algorithm} {found}, expected {remote.digest.hexadecimal}. "
                    "It was deleted; try again."
                )
            return part.rename(folder / remote.name)
        except OSError as error:
            raise DownloadError(f"Cannot write {str(part)!r}: {error.strerror}.") from error

    def _complete(self, remote: RemoteFile, part: Path, on_bytes: Callable[[int], None]) -> None:
        """Fetch what a part lacks, with further attempts as long as bytes keep coming."""
        failures = 0
        while (so_far := part.stat().st_size) != remote.bytes:
            try:
                self._append(remote, part, so_far, on_bytes)
            except _TransientError as error:
                failures = 1 if part.stat().st_size > so_far else failures + 1
                self._wait_or_give_up(error, remote.url, failures, MAX_ATTEMPTS)
        on_bytes(remote.bytes)

    def _append(self, remote: RemoteFile, part: Path, so_far: int, on_bytes: Callable[[int], None]) -> None:
        """Write the rest of a file behind what is there, or all of it if the hub knows no ranges."""
        headers = {"Range": f"bytes={so_far}-"} if so_far else {}
        with self._open(remote.url, headers) as response, part.open("r+b") as file:
            if response.status_code == HTTPStatus.PARTIAL_CONTENT:
                if not response.headers.get("content-range", "").startswith(f"bytes {so_far}-"):
                    raise DownloadError(f"{remote.url} sent another range than the one from byte {so_far}. Try again.")
                file.seek(so_far)
            else:
                file.truncate(0)
                so_far = 0
            # No chunk size: httpx would hold bytes back until a chunk is full, and lose them with the connection.
            for chunk in response.iter_raw():
                so_far += len(chunk)
                if so_far > remote.bytes:
                    file.truncate(0)
                    raise DownloadError(f"{remote.name!r} is longer than the {remote.bytes} bytes that the hub stated.")
                file.write(chunk)
                on_bytes(so_far)
        if so_far < remote.bytes:
            raise _TransientError(f"the connection ended after {so_far} of {remote.bytes} bytes")

    def _read_json(self, url: str) -> object:
        with self._open(url, {}) as response:
            raw = bytearray()
            for chunk in response.iter_raw():
                raw += chunk
                if len(raw) > MAX_LISTING_BYTES:
                    raise DownloadError(f"{url} answered with more than {MAX_LISTING_BYTES} bytes.")
        try:
            return cast("object", json.loads(raw))
        except (ValueError, RecursionError) as error:
            raise DownloadError(f"{url} did not answer with JSON.") from error

    @contextlib.contextmanager
    def _open(self, url: str, headers: Mapping[str, str]) -> Generator[httpx.Response]:
        """Send a request and follow redirects, each of them to a safe address and without the token elsewhere."""
        here = httpx.URL(url)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                request = self._client.build_request("GET", here, headers={**headers, **self._authorization(here)})
                response = self._client.send(request, stream=True)
                try:
                    if response.status_code not in _REDIRECTS:
                        _check_status(response)
                        yield response
                        return
                    here = here.join(response.headers.get("location", ""))
                finally:
                    response.close()
                if not _is_safe(here, allow_loopback=self._origin[0] == "http"):
                    raise DownloadError(f"{url} leads to {str(here)!r}, which is not https.")
            raise DownloadError(f"{url} leads from one address to the next, more than {MAX_REDIRECTS} times.")
        except httpx.TransportError as error:
            raise _TransientError(str(error) or type(error).__name__) from error
        except httpx.InvalidURL as error:
            raise DownloadError(f"{url} leads to an address that is none: {error}.") from error

    def _authorization(self, url: httpx.URL) -> dict[str, str]:
        token = self.endpoint.token
        return {"Authorization": f"Bearer {token}"} if token and _origin(url) == self._origin else {}

    def _wait_or_give_up(self, error: _TransientError, url: str, failures: int, attempts: int) -> None:
        if failures >= attempts:
            raise DownloadError(f"{url} could not be fetched: {error}. Try again; what is there is kept.") from error
        wait_s = min(max(error.wait_s, 0.5 * 2**failures), MAX_WAIT_S)
        logger.warning(
            "%s: %s; attempt %d of %d in %.0f s.", httpx.URL(url).host, error, failures + 1, attempts, wait_s
        )
        self._sleep(wait_s)


def file_digest(path: Path, algorithm: Literal["sha256", "git-sha1"]) -> str:
    """Hash a file; git puts its length before the content."""
    with path.open("rb") as file:
        if algorithm == "sha256":
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    if status in _TRANSIENT:
        wait = response.headers.get("retry-after", "")
        raise _TransientError(f"the hub answered {status}", float(wait) if wait.isdecimal() else 0.0)
    raise HubStatusError(f"{response.url} answered {status} {response.reason_phrase}.", status)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_safe(url: httpx.URL, *, allow_loopback: bool = True) -> bool:
    return bool(url.host) and (
        url.scheme == "https" or (allow_loopback and url.scheme == "http" and url.host in _LOOPBACK)
    )
