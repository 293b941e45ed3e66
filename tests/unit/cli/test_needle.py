"""`qwenstack bench needle` on a model that reads perfectly: files, resuming, refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwenstack.cli import needle
from qwenstack.cli.app import main
from qwenstack.core.outputs import CompletionOutput, RequestOutput
from qwenstack.core.sampling_params import SamplingParams


class CharacterTokenizer:
    bos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [0, *map(ord, text)]

    def encode_chat(self, messages: Sequence[Any], *, enable_thinking: bool) -> list[int]:
        assert not enable_thinking
        return self.encode(f"<{messages[0].content}>")


class PerfectLLM:
    card = SimpleNamespace(id="perfect")

    def __init__(self) -> None:
        self.num_asked = 0

    def get_tokenizer(self) -> CharacterTokenizer:
        return CharacterTokenizer()

    def generate(self, prompt: Any, params: SamplingParams) -> list[RequestOutput]:
        self.num_asked += 1
        ids = prompt["prompt_token_ids"]
        assert ids.count(0) == 1
        assert params.temperature == 0
        code = "".join(chr(token) for token in ids if chr(token).isdigit())
        return [
            RequestOutput(
                request_id="r", prompt=None, prompt_token_ids=ids, outputs=[CompletionOutput(index=0, text=code)]
            )
        ]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> PerfectLLM:
    perfect = PerfectLLM()

    def load(settings: Any) -> PerfectLLM:
        assert settings.engine.max_model_len == 900
        return perfect

    monkeypatch.setattr(needle, "load_llm", load)
    return perfect


ARGUMENTS = ["bench", "needle", "--lengths", "600", "900", "--out", "pictures/n.svg", "--depths"]


def test_a_second_run_asks_only_what_is_new(llm: PerfectLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "2", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["num_found"], report["num_cells"], llm.num_asked) == (4, 4, 4)
    assert err.splitlines()[0].startswith("600 tokens, 100 %: found")
    assert "4 of 4 needles found" in Path("pictures/n.svg").read_text()
    assert len(Path("pictures/n.jsonl").read_text().splitlines()) == 4
    assert main([*ARGUMENTS, "3"]) == 0
    assert llm.num_asked == 6
    assert capsys.readouterr().out.count("yes") == 6


def test_a_text_of_ones_own_is_the_hay(llm: PerfectLLM, capsys: pytest.CaptureFixture[str]) -> None:
    Path("book.txt").write_text("It was a dark night. ")
    assert main([*ARGUMENTS, "2", "--hay", "book.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hay"] == "book.txt"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "needle.jsonl"], "ends in .svg"),
        (["--hay", "missing.txt"], "cannot be read"),
        (["--lengths", "5"], "--lengths"),
    ],
)
def test_a_wrong_wish_is_refused_before_the_model_is_loaded(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "needle", *arguments]) == 2
    assert said in capsys.readouterr().err
