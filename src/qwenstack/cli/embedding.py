"""From the settings to the model that makes vectors of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenstack.cli.settings import EmbeddingSettings
from qwenstack.core.errors import ConfigError

if TYPE_CHECKING:
    from qwenstack.retrieval import E5Embedder

NO_EMBEDDER = "off"
"""The name of no model at all."""


def make_embedder(settings: EmbeddingSettings) -> E5Embedder | None:
    """Return the model that the settings name, not started yet; None where they name none.

    Raises:
        ConfigError: there is no such model.
    """
    if settings.model == NO_EMBEDDER:
        return None
    from qwenstack.retrieval import E5_NAME, E5Embedder

    if settings.model != E5_NAME:
        raise ConfigError(f"`embedding.model` is {settings.model!r}; it must be {E5_NAME!r} or {NO_EMBEDDER!r}.")
    return E5Embedder(num_threads=settings.num_threads or _default_threads())


def _default_threads() -> int:
    """Half of the cores: the engine, which has a thread for each, works on answers meanwhile."""
    from qwenstack.engine.loading import num_cores

    return max(num_cores() // 2, 1)
