"""The official `openai` client against `qwenstack serve` with real weights."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
READY_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def client(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "qwenstack", "serve", str(smollm2_gguf), "--port", str(port)]
    command += ["--served-model-name", "small"]
    command += ["--set", f"storage.url=sqlite:///{tmp_path_factory.mktemp('data') / 'q.db'}"]
    with subprocess.Popen(command) as server:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not answers(f"http://127.0.0.1:{port}/readyz"):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server is not ready"
            time.sleep(0.1)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as connected:
            yield connected
        server.terminate()
        assert server.wait(5) == 0


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def test_chat_whole_and_streamed_are_the_same_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="small", messages=QUESTION, temperature=0, max_tokens=20)
    assert "Paris" in (whole.choices[0].message.content or "")
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(
        model="default",
        messages=QUESTION,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_seeds_repeat_and_answers_differ(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str | None]:
        result = client.chat.completions.create(
            model="small", messages=QUESTION, temperature=1.5, top_p=1, seed=seed, n=3, max_tokens=12
        )
        return [choice.message.content for choice in sorted(result.choices, key=lambda choice: choice.index)]

    first = ask(7)
    assert ask(7) == first
    assert ask(8) != first
    assert len(set(first)) > 1


def test_logprobs_belong_to_the_tokens_of_the_text(client: openai.OpenAI) -> None:
    result = client.chat.completions.create(
        model="small", messages=QUESTION, temperature=0, max_tokens=5, logprobs=True, top_logprobs=2
    )
    logprobs = result.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    spoken = b"".join(bytes(token.bytes or []) for token in logprobs.content).decode()
    assert spoken == result.choices[0].message.content
    for token in logprobs.content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


def test_a_completion_ends_before_its_stop_string(client: openai.OpenAI) -> None:
    free = client.completions.create(model="small", prompt="One, two, three,", temperature=0, max_tokens=16)
    stop = free.choices[0].text[4:7]
    cut = client.completions.create(model="small", prompt="One, two, three,", temperature=0, max_tokens=16, stop=stop)
    assert cut.choices[0].text == free.choices[0].text[: free.choices[0].text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_models_and_errors_are_openais(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small", "multilingual-e5-small"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="small", prompt="word " * 9000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as too_many:
        client.chat.completions.create(model="small", messages=QUESTION, n=1_000_000)
    assert too_many.value.param == "n"
