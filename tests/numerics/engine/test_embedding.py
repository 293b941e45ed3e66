"""Random checkpoints of Qwen3-Embedding's shape: our vectors are those of transformers, whatever is computed beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.embedding_checkpoint import reference_vectors, save_embedding_checkpoint

from qwenstack.core.errors import ConfigError
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.embedding import TextEmbedder, load_text_embedder
from qwenstack.tokenizer import Tokenizer

VECTOR_TOLERANCE = 2e-5
"""Largest difference of a number of a vector of length one: float32 rounding through three layers."""
HALF_TOLERANCE = 2e-3
"""The same for bfloat16 weights, whose keys and values are kept in float16."""
TEXTS = [
    "The cat sat on the mat.",
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: 今天天气如何？",
    "今天天气很好，我们去公园散步吧。" * 9,
    "x",
]


def load(folder: Path, **options: object) -> tuple[TextEmbedder, Tokenizer]:
    config = EngineConfig(model_path=folder, model_name="e", num_threads=1, **options)  # type: ignore[arg-type]
    return load_text_embedder(config)


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [*tokenizer.encode(text), *tokenizer.text_end_ids]


@pytest.mark.parametrize("tied", [True, False])
def test_our_vectors_are_those_of_transformers(tmp_path: Path, tied: bool) -> None:
    folder = save_embedding_checkpoint(tmp_path, tied=tied)
    embedder, tokenizer = load(folder)
    ours = embedder.embed([token_ids(tokenizer, text) for text in TEXTS])
    assert np.abs(ours - reference_vectors(folder, TEXTS).numpy()).max() < VECTOR_TOLERANCE


def test_our_vectors_are_those_of_transformers_with_weights_of_bfloat16(tmp_path: Path) -> None:
    folder = save_embedding_checkpoint(tmp_path, dtype=torch.bfloat16)
    embedder, tokenizer = load(folder)
    ours = embedder.embed([token_ids(tokenizer, text) for text in TEXTS])
    assert np.abs(ours - reference_vectors(folder, TEXTS).numpy()).max() < HALF_TOLERANCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedding_checkpoint(tmp_path_factory.mktemp("embedding"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def whole(folder: Path) -> TextEmbedder:
    """One that computes each of the texts below in one step."""
    return load(folder)[0]


@pytest.fixture(scope="module")
def in_pieces(folder: Path) -> TextEmbedder:
    """One that needs several steps for a text."""
    return load(folder, max_num_batched_tokens=16, max_num_seqs=16)[0]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=90), min_size=1, max_size=9))
def test_a_text_gets_the_same_bits_alone_and_among_others_and_in_pieces(
    whole: TextEmbedder, in_pieces: TextEmbedder, texts: list[list[int]]
) -> None:
    together = whole.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal(whole.embed([text])[0], vector)
    assert np.array_equal(in_pieces.embed(texts), together)


def test_the_tokenizer_ends_each_text_as_transformers_does(folder: Path) -> None:
    import transformers

    _, tokenizer = load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert token_ids(tokenizer, text) == theirs(text)["input_ids"]


def test_a_model_of_another_family_is_refused_with_the_way_out(tmp_path: Path) -> None:
    from support.checkpoints import save_random
    from transformers import LlamaConfig

    save_random(
        tmp_path,
        LlamaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=48, vocab_size=99),
    )
    with pytest.raises(ConfigError, match="whose type is 'qwen3'"):
        load(tmp_path)
