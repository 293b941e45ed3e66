"""What Hugging Face, or a mirror of it, says about a repository.

Source: the hub's HTTP API, `/api/models/{repo}/revision/{revision}` and `/api/models/{repo}/tree/{revision}`.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from qwenstack.core.errors import DownloadError
from qwenstack.hub.fetch import MAX_ATTEMPTS, Fetcher
from qwenstack.hub.remote_model import Digest, RemoteFile
from qwenstack.hub.strict_json import as_list, as_object

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def list_huggingface(fetcher: Fetcher, repo: str, *, attempts: int = MAX_ATTEMPTS) -> list[RemoteFile]:
    """Pin the newest commit of a repository and list its files.

    Raises:
        HubStatusError: the hub refused.
        DownloadError: the hub cannot be reached, or answers nonsense.
    """
    about = as_object(fetcher.json(f"api/models/{repo}/revision/main", attempts=attempts)) or {}
    commit = about.get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise DownloadError(f"{fetcher.endpoint.url} did not name a commit of {repo!r}.")
    listing = as_list(fetcher.json(f"api/models/{repo}/tree/{commit}", attempts=attempts))
    if listing is None:
        raise DownloadError(f"{fetcher.endpoint.url} did not list the files of {repo!r}.")
    files = (_remote_file(fetcher, repo, commit, as_object(entry) or {}) for entry in listing)
    return [file for file in files if file is not None]


def _remote_file(fetcher: Fetcher, repo: str, commit: str, entry: dict[str, object]) -> RemoteFile | None:
    name, length, git_sha1 = entry.get("path"), entry.get("size"), entry.get("oid")
    if entry.get("type") != "file" or not isinstance(name, str) or type(length) is not int:
        return None
    sha256 = (as_object(entry.get("lfs")) or {}).get("oid")
    if isinstance(sha256, str) and _SHA256.fullmatch(sha256):
        digest = Digest(algorithm="sha256", hexadecimal=sha256)
    elif isinstance(git_sha1, str) and _COMMIT.fullmatch(git_sha1):
        digest = Digest(algorithm="git-sha1", hexadecimal=git_sha1)
    else:
        return None
    return RemoteFile(name=name, bytes=length, digest=digest, url=fetcher.url(f"{repo}/resolve/{commit}/{quote(name)}"))
