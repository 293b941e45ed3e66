"""A Qwen3-Embedding-shaped checkpoint in its process, and offline: the vectors that transformers gives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from support.embedding_checkpoint import reference_vectors, save_embedding_checkpoint

from qwenstack import LLM
from qwenstack.core.errors import ConfigError, EngineError, RequestError
from qwenstack.retrieval import EmbedderProcess, decoder_embedder

pytestmark = pytest.mark.anyio

TOLERANCE = 2e-5
"""As in `tests/numerics/engine/test_embedding.py`."""
TEXTS = ["The cat sat on the mat.", "今天天气很好，我们去公园散步吧。", "Instruct: find\nQuery: a cat"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedding_checkpoint(tmp_path_factory.mktemp("embedding"))


@pytest.fixture
async def embedder(folder: Path) -> AsyncIterator[EmbedderProcess]:
    embedder = decoder_embedder(folder, "toy/qwen3-embedding", num_threads=1, max_tokens=64)
    yield embedder
    await embedder.close()


async def test_its_vectors_are_those_of_transformers_as_text_and_as_token_ids(
    embedder: EmbedderProcess, folder: Path
) -> None:
    import transformers

    theirs = reference_vectors(folder, TEXTS).numpy()
    read = await embedder.prepare(TEXTS)
    assert np.abs(np.array(await embedder.embed(read)) - theirs).max() < TOLERANCE
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert [each.num_tokens for each in read] == [len(each) for each in ids]
    assert np.array_equal(await embedder.embed(await embedder.prepare(ids)), await embedder.embed(read))


async def test_its_card_is_what_its_files_say(embedder: EmbedderProcess) -> None:
    card = embedder.card
    assert (card.id, card.dimensions, card.min_dimensions, card.max_tokens) == ("toy/qwen3-embedding", 96, 32, 64)
    assert card.takes_token_ids
    assert card.weight_format == "F32"


async def test_a_long_text_is_cut_before_its_end_mark(embedder: EmbedderProcess) -> None:
    text = "今天天气很好。" * 50
    (whole,) = await embedder.prepare([text])
    assert whole.num_tokens > 64
    (cut,) = await embedder.prepare([text], truncate=True)
    assert (cut.num_tokens, cut.is_cut) == (64, True)
    assert cut.content == (*whole.content[:63], whole.content[-1])


@pytest.mark.parametrize("given", ["", "\ud800", [], [-1], [10_000]])
async def test_what_cannot_be_embedded_is_refused_before_it_is_sent(
    embedder: EmbedderProcess, given: str | list[int]
) -> None:
    with pytest.raises(RequestError, match=r"`input\[1\]`"):
        await embedder.prepare(["fine", given])
    assert embedder.pid is None


async def test_files_that_cannot_be_loaded_are_told_at_the_start_or_by_the_first_request(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="was trained for 1024"):
        decoder_embedder(folder, "e", max_tokens=2000)
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    embedder = decoder_embedder(tmp_path, "e")
    for _ in range(2):
        with pytest.raises(EngineError, match=r"cannot be loaded.*tokenizer\.json"):
            await embedder.prepare(["a"])
    await embedder.close()


def test_an_llm_in_this_process_gives_the_same_vectors(folder: Path) -> None:
    theirs = reference_vectors(folder, TEXTS).numpy()
    with LLM(folder, num_threads=1, prefix_cache_disk_bytes=0) as llm:
        made = llm.embed(TEXTS)
        assert np.abs(np.array([each.outputs.embedding for each in made]) - theirs).max() < TOLERANCE
        ids = [{"prompt_token_ids": each.prompt_token_ids} for each in made]
        assert [each.outputs.embedding for each in llm.embed(ids)] == [each.outputs.embedding for each in made]
        assert llm.embed(TEXTS[0])[0].outputs.embedding == made[0].outputs.embedding
        for wrong in ([], {"prompt_token_ids": []}, {"prompt_token_ids": [99_999]}, "word " * 2000):
            if wrong == []:
                assert llm.embed([]) == []
                continue
            with pytest.raises(RequestError):
                llm.embed(wrong)
