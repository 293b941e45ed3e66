"""From the settings to files on this machine and to the configuration of an engine."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from qwenstack.cli.progress import DownloadProgress
from qwenstack.cli.settings import HubSettings, Settings

if TYPE_CHECKING:
    from qwenstack.engine import LLM, EngineConfig
    from qwenstack.hub.cache import ModelCache
    from qwenstack.hub.pull import PulledModel


def model_cache(hub: HubSettings) -> ModelCache:
    """Return the folder where models are kept."""
    from qwenstack.hub.cache import ModelCache

    return ModelCache(hub.cache_dir) if hub.cache_dir else ModelCache.default()


def fetch_model(settings: Settings, model: str | None = None) -> PulledModel:
    """Make sure that a model's files are on this machine, showing the progress of a download.

    Args:
        settings: name the model that answers, and where models are.
        model: another one.

    Raises:
        CheckpointError: there is no such model, or it cannot be had.
    """
    from qwenstack.hub.pull import HubConfig, pull

    hub = settings.hub
    hubs = HubConfig(hf_endpoint=hub.hf_endpoint, ms_endpoint=hub.ms_endpoint, hf_token=hub.hf_token)
    with DownloadProgress() as progress:
        return pull(model or settings.model, cache=model_cache(hub), progress=progress, offline=hub.offline, hubs=hubs)


def engine_config(settings: Settings, model: PulledModel) -> EngineConfig:
    """Return how the engine shall run a model."""
    from qwenstack.engine import EngineConfig

    return EngineConfig(model_path=model.path, model_name=model.name, **asdict(settings.engine))


def load_llm(settings: Settings) -> LLM:
    """Fetch a model where necessary and load it into this process.

    Raises:
        CheckpointError: the model cannot be had or opened.
        CapacityError: it does not fit into memory.
    """
    from qwenstack.engine import LLM

    model = fetch_model(settings)
    if sys.stderr.isatty():
        sys.stderr.write(f"Loading {model.name} ...\n")
    return LLM(model.path, model_name=model.name, **asdict(settings.engine))
