"""The needle test without a model: prompts to the token, honest checks, a run that goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.errors import ConfigError
from qwenstack.evals.haystack import Language, made_sentences, sentences_of
from qwenstack.evals.needle import (
    ANSWER_TOKENS,
    Cell,
    Place,
    build_prompt,
    chat_frame,
    is_found,
    make_needle,
    places,
    run,
)
from qwenstack.evals.needle_picture import describe, draw
from qwenstack.evals.needle_report import NeedleReport, Setup, append_cell, read_report

SETUP = Setup(model="m", language="en", hay="made", seed=0, yarn_factor=None)


class Reader:
    """Each character is a token; it sees the first `sight` of a text and answers with the code if it is there."""

    def __init__(self, sight: int = 1 << 30) -> None:
        self.sight = sight
        self.prompts: list[str] = []

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_chat(self, text: str) -> list[int]:
        return self.encode(f"<user>{text}</user><assistant>")

    def answer(self, prompt_token_ids: Sequence[int], max_tokens: int) -> str:
        assert max_tokens == ANSWER_TOKENS
        prompt = "".join(map(chr, prompt_token_ids))
        self.prompts.append(prompt)
        seen = re.search(r"(?:is |码是)(\d+)", prompt[: self.sight])
        return f"It is {seen[1]}." if seen else "I do not know."


def hay(language: Language = "en"):
    return lambda: made_sentences(language, 0)


@given(
    length=st.integers(400, 5000),
    depth=st.integers(0, 100),
    language=st.sampled_from(("en", "zh")),
    seed=st.integers(0, 9),
)
def test_a_prompt_has_exactly_the_tokens_asked_for_and_the_needle_once_at_its_depth(
    length: int, depth: int, language: Language, seed: int
) -> None:
    place = Place(length=length, depth_percent=depth)
    needle = make_needle(place, language, seed)
    ids = build_prompt(Reader(), place, needle, language=language, hay=hay(language)())
    assert len(ids) == length - ANSWER_TOKENS
    text = "".join(map(chr, ids))
    assert text.count(needle.sentence) == 1
    assert text.startswith("<user>")
    assert text.endswith(f"{needle.question}</user><assistant>")
    start, end = text.index("\n\n") + 2, len(text) - len(f"{needle.question}</user><assistant>")
    longest_sentence = max(map(len, itertools.islice(made_sentences(language, 0), 200)))
    room = end - start - len(needle.sentence)
    assert abs(text.index(needle.sentence) - start - room * depth / 100) <= longest_sentence
    without_code = text.replace(needle.code, "")
    assert not re.search(r"\d", without_code)


def test_cells_of_one_length_share_their_hay_up_to_the_needle() -> None:
    first, second = Reader(), Reader()
    for reader, depth in ((first, 100), (second, 40)):
        list(run(reader, [Place(length=3000, depth_percent=depth)], language="en", seed=0, hay=hay()))
    upto = second.prompts[0].index("The access code")
    assert upto > 1000
    assert first.prompts[0][:upto] == second.prompts[0][:upto]


def test_the_deepest_cell_of_a_length_comes_first() -> None:
    assert [(place.length, place.depth_percent) for place in places([20, 10, 20], 3)] == [
        *((20, 100), (20, 50), (20, 0)),
        *((10, 100), (10, 50), (10, 0)),
    ]
    assert [place.depth_percent for place in places([10], 1)] == [50]


def test_a_length_that_holds_no_question_says_what_would() -> None:
    place = Place(length=100, depth_percent=50)
    needle = make_needle(place, "en", 0)
    with pytest.raises(ConfigError, match="too short") as caught:
        build_prompt(Reader(), place, needle, language="en", hay=hay()())
    least = int(str(caught.value).rsplit(" ", 1)[1].rstrip("."))
    shortest = replace(place, length=least)
    assert len(build_prompt(Reader(), shortest, needle, language="en", hay=hay()())) == least - ANSWER_TOKENS


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("1234567", True),
        ("The code is 1,234,567.", True),
        ("通行码是1234567。", True),
        ("1 234 567", True),
        ("12345678", False),
        ("123456", False),
        ("91234567", False),
        ("I cannot find it.", False),
        ("", False),
    ],
)
def test_only_the_whole_number_counts(answer: str, found: bool) -> None:
    assert is_found(answer, "1234567") is found


def test_a_reader_who_stops_early_misses_the_deep_needles() -> None:
    cells = list(run(Reader(sight=2000), places([4000], 5), language="en", seed=0, hay=hay()))
    assert [cell.place.depth_percent for cell in cells if cell.found] == [25, 0]


def test_the_frame_of_a_chat_is_what_its_template_writes() -> None:
    head, tail = chat_frame(Reader().encode_chat)
    assert ("".join(map(chr, head)), "".join(map(chr, tail))) == ("<user>", "</user><assistant>")


def test_a_text_of_ones_own_is_cut_into_sentences_and_repeated() -> None:
    assert list(itertools.islice(sentences_of("One two. Three?\nFour", "en"), 4)) == [
        *("One two. ", "Three? ", "Four ", "One two. "),
    ]
    assert list(itertools.islice(sentences_of("你好。再见！", "zh"), 3)) == ["你好。", "再见！", "你好。"]
    with pytest.raises(ValueError, match="no sentence"):
        next(sentences_of(" \n", "en"))


def cells_of(num_found: int, num_lost: int) -> list[Cell]:
    return [
        Cell(
            place=Place(length=1000 * (1 + index), depth_percent=50),
            code="1234567",
            answer="1234567" if index < num_found else "no <idea> & no code",
            found=index < num_found,
            num_prompt_tokens=1,
            seconds=0.5,
        )
        for index in range(num_found + num_lost)
    ]


def test_answers_survive_a_run_that_was_cut_off_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "needle.jsonl"
    first, second, third = cells_of(2, 1)
    append_cell(path, SETUP, first)
    append_cell(path, SETUP, second)
    path.write_text(path.read_text()[:-20])
    assert read_report(path, SETUP).cells == (first,)
    append_cell(path, SETUP, third)
    assert read_report(path, SETUP).cells == (first, third)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_answers_of_another_setup_are_not_taken_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "needle.jsonl"
    (cell,) = cells_of(1, 0)
    append_cell(path, SETUP, cell)
    for other in (replace(SETUP, yarn_factor=4.0), replace(SETUP, model="n"), replace(SETUP, seed=1)):
        assert read_report(path, other).cells == ()
    assert read_report(path, SETUP).num_found == 1


def test_a_file_of_something_else_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "needle.jsonl"
    path.write_text('{"model": "m"}\n')
    with pytest.raises(ConfigError, match="Line 1"):
        read_report(path, SETUP)


def test_cells_that_are_done_are_not_asked_again() -> None:
    reader = Reader()
    wanted = places([1000], 3)
    cells = list(run(reader, wanted, language="en", seed=0, hay=hay(), done=wanted[:2], clock=lambda: 7.0))
    assert [cell.place for cell in cells] == wanted[2:]
    assert len(reader.prompts) == 1
    assert cells[0].seconds == 0.0


def test_the_picture_says_by_sign_and_words_what_its_colours_say() -> None:
    cells = cells_of(2, 1)
    cells.append(replace(cells[0], place=Place(length=1000, depth_percent=100)))
    report = NeedleReport(setup=replace(SETUP, model='<a> & "b"'), cells=cells)
    svg = ET.fromstring(draw(report))
    space = "{http://www.w3.org/2000/svg}"
    signs = [text.text for text in svg.iter(f"{space}text") if text.get("class") == "sign"]
    kinds = [rect.get("class") for rect in svg.iter(f"{space}rect")]
    assert signs == ["✓", "✓", "✓", "✗"]
    assert kinds == ["found", "found", "found", "open", "lost", "open"]
    assert svg.find(f"{space}title").text == '<a> & "b": 3 of 4 needles found'  # type: ignore[union-attr]
    assert (
        svg.find(f"{space}desc").text == describe(report) == "Not found: 3,000 tokens at 50 %. Found everywhere else."
    )  # type: ignore[union-attr]
    assert svg.get("role") == "img"
    assert report.as_json()["num_found"] == 3


def test_all_found_and_nothing_asked_have_words_too() -> None:
    assert "every length" in describe(NeedleReport(setup=SETUP, cells=cells_of(2, 0)))
    empty = NeedleReport(setup=SETUP, cells=())
    assert describe(empty) == "Nothing was asked."
    ET.fromstring(draw(empty))
