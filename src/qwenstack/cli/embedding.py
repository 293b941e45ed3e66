"""From the settings to the model that makes vectors of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenstack.cli.loading import fetch_model
from qwenstack.cli.settings import Settings

if TYPE_CHECKING:
    from qwenstack.retrieval import EmbedderProcess

NO_EMBEDDER = "off"
"""The name of no model at all."""


def make_embedder(settings: Settings) -> EmbedderProcess | None:
    """Return the model that the settings name, fetched where necessary and not started yet; None where they name none.

    Raises:
        CheckpointError: there is no such model, it cannot be had, or it is damaged.
        ConfigError: it does not embed, or a setting does not suit it.
    """
    chosen = settings.embedding
    if chosen.model == NO_EMBEDDER:
        return None
    from qwenstack.retrieval import E5_NAME, decoder_embedder, e5_embedder

    num_threads = chosen.num_threads or _default_threads()
    if chosen.model == E5_NAME:
        return e5_embedder(num_threads=num_threads)
    pulled = fetch_model(settings, chosen.model)
    return decoder_embedder(pulled.path, pulled.name, num_threads=num_threads, max_tokens=chosen.max_tokens)


def _default_threads() -> int:
    """Half of the cores: the engine, which has a thread for each, works on answers meanwhile."""
    from qwenstack.engine.loading import num_cores

    return max(num_cores() // 2, 1)
