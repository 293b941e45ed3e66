"""The official clients of OpenAI and Ollama embed texts with the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ollama
import openai
import pytest

TEXTS = ["今天天气很好", "The weather is nice today", "Quantum entanglement"]


@pytest.fixture
def client(embedding_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{embedding_url}/v1", api_key="any", timeout=30, max_retries=0) as client:
        yield client


def test_openais_client_gets_the_same_vectors_as_numbers_and_as_base64(client: openai.OpenAI) -> None:
    numbers = client.embeddings.create(model="multilingual-e5-small", input=TEXTS, encoding_format="float")
    coded = client.embeddings.create(model="default", input=TEXTS)  # base64, which the client decodes
    assert [entry.embedding for entry in numbers.data] == [list(entry.embedding) for entry in coded.data]
    assert [len(entry.embedding) for entry in numbers.data] == [384] * 3
    assert numbers.model == "multilingual-e5-small"
    assert numbers.usage.prompt_tokens == numbers.usage.total_tokens > 3 * 3
    vectors = np.array([entry.embedding for entry in numbers.data])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_openais_client_lists_the_model_and_hears_refusals(client: openai.OpenAI) -> None:
    assert "multilingual-e5-small" in [model.id for model in client.models.list()]
    with pytest.raises(openai.BadRequestError, match="gives only 384"):
        client.embeddings.create(model="default", input="x", dimensions=64)
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model="default", input=[1, 2, 3])
    with pytest.raises(openai.BadRequestError, match="set `truncate`"):
        client.embeddings.create(model="default", input="word " * 600)
    cut: Any = client.embeddings.create(model="default", input="word " * 600, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 512
    with pytest.raises(openai.NotFoundError, match="multilingual-e5-small"):
        client.embeddings.create(model="text-embedding-3-small", input="x")


def test_openais_client_says_what_a_text_is(client: openai.OpenAI) -> None:
    def vector(**fields: object) -> list[float]:
        made = client.embeddings.create(model="default", input="a cat", encoding_format="float", extra_body=fields)
        return made.data[0].embedding

    assert vector() == vector(input_type="query")
    assert vector(input_type="document") == vector(input_type="passage") != vector()


def test_ollamas_client_gets_the_same_vectors(embedding_url: str, client: openai.OpenAI) -> None:
    expected = [list(entry.embedding) for entry in client.embeddings.create(model="default", input=TEXTS).data]
    with ollama.Client(host=embedding_url, timeout=30) as ours:
        made = ours.embed("multilingual-e5-small:latest", TEXTS)
        assert [list(vector) for vector in made.embeddings] == expected
        assert made.model == "multilingual-e5-small"
        assert made.prompt_eval_count is not None
        assert made.total_duration is not None
        assert list(ours.embeddings("multilingual-e5-small", TEXTS[0]).embedding) == expected[0]
        with pytest.raises(ollama.ResponseError, match="set `truncate`"):
            ours.embed("default", "word " * 600)
        assert ours.embed("default", "word " * 600, truncate=True).prompt_eval_count == 512
