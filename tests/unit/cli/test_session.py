"""The terminal chat without a terminal: scripted lines in, everything that is shown out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from qwenstack.cli.chat.session import ChatSession
from qwenstack.core.errors import RequestError
from qwenstack.core.sampling_params import SamplingParams

CTRL_C, CTRL_D = KeyboardInterrupt(), EOFError()


class ScriptedTerminal:
    def __init__(self, lines: Iterable[str | BaseException]) -> None:
        self.prompts: list[str] = []
        self.answers = [""]
        self.notes: list[str] = []
        self._lines = iter([*lines, CTRL_D])

    def read_line(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self._lines)
        if isinstance(line, BaseException):
            raise line
        return line

    def write(self, text: str) -> None:
        self.answers[-1] += text

    def end_answer(self) -> None:
        self.answers.append("")

    def note(self, text: str) -> None:
        self.notes.append(text)


def talk(model, *lines: str | BaseException, **options: object) -> ScriptedTerminal:
    terminal = ScriptedTerminal(lines)
    ChatSession(model, terminal, SamplingParams(), **options).run()
    return terminal


def contents(messages) -> list[str]:
    return [message.content for message in messages]


def test_the_model_sees_the_whole_conversation(fake_model):
    model = fake_model(["Hello"], ["又见面了"])
    terminal = talk(model, "Hi", "再说一次", system="Be brief.", enable_thinking=False)
    assert terminal.answers[:2] == ["Hello", "又见面了"]
    assert contents(model.asked[1]) == ["Be brief.", "Hi", "Hello", "再说一次"]
    assert model.thinking == [False, False]


def test_new_forgets_the_turns_and_keeps_the_system_prompt(fake_model):
    model = fake_model(["1"], ["2"])
    talk(model, "first", "/new", "second", system="S")
    assert contents(model.asked[1]) == ["S", "second"]


def test_the_system_prompt_can_be_shown_set_and_removed(fake_model):
    model = fake_model(["1"], ["2"])
    terminal = talk(model, "/system", "/system 你是诗人", "a", "/system -", "b")
    assert contents(model.asked[0]) == ["你是诗人", "a"]
    assert contents(model.asked[1]) == ["a", "1", "b"]
    assert terminal.notes[1:4] == ["no system prompt", "system prompt: 你是诗人", "no system prompt"]


def test_several_lines_are_one_message(fake_model):
    model = fake_model(["ok"])
    terminal = talk(model, '"""', "a", "b", '"""')
    assert contents(model.asked[0]) == ["a\nb"]
    assert terminal.prompts[:4] == ["> ", ". ", ". ", ". "]


def test_a_refused_question_is_told_and_not_kept(fake_model):
    model = fake_model(RequestError("The prompt has 5000 tokens; at most 4096 fit."), ["fine"])
    terminal = talk(model, "too long", "short")
    assert any(note.startswith("error: The prompt has 5000 tokens") for note in terminal.notes)
    assert contents(model.asked[1]) == ["short"]


def test_an_answer_cut_off_by_its_length_says_so(fake_model):
    model = fake_model(["a", "b"])
    model.finish_reason = "length"
    assert any("cut off after 2 tokens" in note for note in talk(model, "go").notes)


def test_blank_lines_ask_nothing(fake_model):
    model = fake_model()
    talk(model, "", "   ")
    assert model.asked == []


def test_exit_leaves_at_once(fake_model):
    terminal = talk(fake_model(), "/exit", "never read")
    assert len(terminal.prompts) == 1


def test_ctrl_c_at_the_prompt_leaves_the_second_time_in_a_row(fake_model):
    assert len(talk(fake_model(), CTRL_C, CTRL_C, "never read").prompts) == 2
    model = fake_model(["x"])
    assert len(talk(model, CTRL_C, "hi", CTRL_C, "/model").prompts) == 5
    assert len(model.asked) == 1


def test_ctrl_c_drops_a_half_typed_block(fake_model):
    model = fake_model(["x"])
    talk(model, '"""', "half", CTRL_C, "whole")
    assert contents(model.asked[0]) == ["whole"]


def test_save_writes_a_new_file_and_spares_an_old_one(fake_model, tmp_path: Path):
    path = tmp_path / "对话.md"
    talk(fake_model(["你好"]), "Hi", f"/save {path}")
    assert path.read_text(encoding="utf-8") == "## User\n\nHi\n\n## Assistant\n\n你好\n"
    terminal = talk(fake_model(), f"/save {path}", "/save", f"/save {tmp_path}/no/such/folder.md")
    assert sum("cannot be written" in note for note in terminal.notes) == 2
    assert "Where to? /save FILE" in terminal.notes
    assert "你好" in path.read_text(encoding="utf-8")


def test_model_and_stats_describe_what_runs(fake_model):
    terminal = talk(fake_model(["a", "b"]), "/stats", "go", "/stats", "/model")
    assert terminal.notes[0].startswith("fake-1m: 1 M parameters, F32, context 4,096 tokens")
    assert terminal.notes[1] == "no answer yet"
    assert terminal.notes[2].startswith("2 tokens in ")


@pytest.mark.parametrize("line", ["/hlep", "/foo"])
def test_an_unknown_command_never_reaches_the_model(fake_model, line: str):
    terminal = talk(fake_model(), line)
    assert any(f"There is no command {line!r}" in note for note in terminal.notes)
