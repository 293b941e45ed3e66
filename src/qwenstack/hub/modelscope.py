"""What ModelScope says about a repository.

Source: the hub's HTTP API, `/api/v1/models/{repo}/repo/files` and `/api/v1/models/{repo}/repo`, as its own client
package calls them.
"""

from __future__ import annotations

import re
from urllib.parse import urlencode

from qwenstack.core.errors import DownloadError
from qwenstack.hub.fetch import MAX_ATTEMPTS, Fetcher
from qwenstack.hub.remote_model import Digest, RemoteFile
from qwenstack.hub.strict_json import as_list, as_object

BRANCH = "master"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def list_modelscope(fetcher: Fetcher, repo: str, *, attempts: int = MAX_ATTEMPTS) -> list[RemoteFile]:
    """List the files of a repository, each pinned by the commit that changed it last and by its SHA-256.

    Raises:
        HubStatusError: the hub refused.
        DownloadError: the hub cannot be reached, or answers nonsense.
    """
    query = urlencode({"Revision": BRANCH, "Recursive": "false"})
    answer = as_object(fetcher.json(f"api/v1/models/{repo}/repo/files?{query}", attempts=attempts)) or {}
    listing = as_list((as_object(answer.get("Data")) or {}).get("Files"))
    if listing is None:
        raise DownloadError(f"{fetcher.endpoint.url} did not list the files of {repo!r}.")
    files = (_remote_file(fetcher, repo, as_object(entry) or {}) for entry in listing)
    return [file for file in files if file is not None]


def _remote_file(fetcher: Fetcher, repo: str, entry: dict[str, object]) -> RemoteFile | None:
    name, length, sha256, commit = (entry.get(field) for field in ("Path", "Size", "Sha256", "Revision"))
    if entry.get("Type") == "tree" or not isinstance(name, str) or type(length) is not int:
        return None
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        return None
    revision = commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else BRANCH
    query = urlencode({"Revision": revision, "FilePath": name})
    return RemoteFile(
        name=name,
        bytes=length,
        digest=Digest(algorithm="sha256", hexadecimal=sha256),
        url=fetcher.url(f"api/v1/models/{repo}/repo?{query}"),
    )
