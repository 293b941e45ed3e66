"""What the tests of the command line share: a home of their own, and a model that says what it is told to say."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from qwenstack.core.errors import QwenStackError
from qwenstack.core.messages import Message
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.protocols import ModelCard
from qwenstack.core.sampling_params import SamplingParams


class FakeModel:
    """Answers with given pieces, one token each, and remembers what it was asked."""

    def __init__(self, *answers: Sequence[str] | QwenStackError, default_sampling: dict[str, float] | None = None):
        self.card = ModelCard(
            id="fake-1m", created=0, max_model_len=4096, vocab_size=100, num_parameters=1_000_000, weight_format="F32"
        )
        self.default_sampling = default_sampling or {}
        self.finish_reason = "stop"
        self.asked: list[tuple[Message, ...]] = []
        self.params: list[SamplingParams] = []
        self.thinking: list[bool | None] = []
        self.num_cancelled = 0
        self._answers = iter(answers)

    def stream_chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams, *, enable_thinking: bool | None = None
    ) -> Generator[OutputDelta]:
        self.asked.append(tuple(messages))
        self.params.append(sampling_params)
        self.thinking.append(enable_thinking)
        answer = next(self._answers)
        if isinstance(answer, QwenStackError):
            raise answer
        try:
            for index, piece in enumerate(answer):
                is_last = index == len(answer) - 1
                yield OutputDelta(
                    request_id="r", text=piece, token_ids=[index], finish_reason=self.finish_reason if is_last else None
                )
        except GeneratorExit:
            self.num_cancelled += 1
            raise


@pytest.fixture
def fake_model() -> type[FakeModel]:
    return FakeModel


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, an empty folder to stand in, and an environment without settings."""
    for name in [name for name in os.environ if name.startswith(("QWENSTACK_", "HF_", "XDG_"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(work)
    return home
