"""A needle in a haystack: does a model find one sentence in a long text, and does it matter where that sentence is?

Every prompt has exactly the tokens that were asked for. The cells of one length share their hay from the start on, and
the deepest comes first, so that an engine with a prefix cache reads most of it once.
Source of the idea: Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwenstack.core.errors import ConfigError
from qwenstack.evals.haystack import Language

ANSWER_TOKENS = 32
"""Room for a sentence around a number of seven digits, each a token in Qwen's vocabulary."""
_CODE_DIGITS = 7
_PLACES: dict[Language, Sequence[str]] = {
    "en": ("Aldora", "Brightwater", "Cape Merrin", "Dunholm", "Eastfall"),
    "zh": ("望海", "青石", "白沙", "归云", "落霞"),
}
_SENTENCES: dict[Language, str] = {
    "en": "The access code of the lighthouse at {place} is {code}. ",
    "zh": "{place}灯塔的通行码是{code}。",
}
_INTRODUCTIONS: dict[Language, str] = {
    "en": "Read this text and answer the question at its end.\n\n",
    "zh": "请阅读下面的文字，并回答最后的问题。\n\n",
}
_QUESTIONS: dict[Language, str] = {
    "en": "\n\nWhat is the access code of the lighthouse at {place}? Answer with the number only.",
    "zh": "\n\n{place}灯塔的通行码是多少？只回答数字。",
}
_NUMBER = re.compile(r"\d+")


class NeedleModel(Protocol):
    """What the test needs of a model."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, without anything before it."""
        ...

    def encode_chat(self, text: str) -> list[int]:
        """Return the ids of a conversation whose only turn is this user's, ready for the answer."""
        ...

    def answer(self, prompt_token_ids: Sequence[int], max_tokens: int) -> str:
        """Return the likeliest answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One cell of the picture."""

    length: int
    """Tokens of prompt and answer together."""
    depth_percent: int
    """Hay before the needle: 0 is the start of the text, 100 its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """What is hidden and asked for."""

    sentence: str
    question: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One answer."""

    place: Place
    code: str
    answer: str
    found: bool
    num_prompt_tokens: int
    seconds: float


def places(lengths: Iterable[int], num_depths: int) -> list[Place]:
    """Return every cell, the deepest of a length first; one depth is the middle."""
    depths = [round(100 * index / (num_depths - 1)) for index in range(num_depths)] if num_depths > 1 else [50]
    return [
        Place(length=length, depth_percent=depth) for length in dict.fromkeys(lengths) for depth in reversed(depths)
    ]


def make_needle(place: Place, language: Language, seed: int) -> Needle:
    """Return the needle of a cell: another number in each, the same ones for a seed."""
    chooser = random.Random(f"{language} {seed} {place.length} {place.depth_percent}")  # noqa: S311 - no secret
    town = chooser.choice(_PLACES[language])
    code = str(chooser.randrange(10 ** (_CODE_DIGITS - 1), 10**_CODE_DIGITS))
    return Needle(
        sentence=_SENTENCES[language].format(place=town, code=code),
        question=_QUESTIONS[language].format(place=town),
        code=code,
    )


def is_found(answer: str, code: str) -> bool:
    """Whether an answer names the number as a whole; commas and spaces between its digits do not matter."""
    joined = re.sub(r"(?<=\d)[,， ](?=\d)", "", answer)
    return code in _NUMBER.findall(joined)


def chat_frame(encode_chat: Callable[[str], list[int]]) -> tuple[list[int], list[int]]:
    """Return the ids that a chat template puts before and after a user's text."""
    one, other = encode_chat("A"), encode_chat("B")
    num_same = next(index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return one[:num_same], one[num_same + 1 :]


def build_prompt(
    model: NeedleModel, place: Place, needle: Needle, *, language: Language, hay: Iterable[str]
) -> list[int]:
    """Return the ids of a prompt that leaves exactly `ANSWER_TOKENS` of the cell's length.

    The needle goes between two sentences of the hay; the last sentence of the hay is cut where the prompt is full.

    Raises:
        ConfigError: the length is too short for the question alone.
    """
    head, tail = chat_frame(model.encode_chat)
    head = head + model.encode(_INTRODUCTIONS[language])
    tail = model.encode(needle.question) + tail
    needle_ids = model.encode(needle.sentence)
    room = place.length - ANSWER_TOKENS - len(head) - len(needle_ids) - len(tail)
    if room < 0:
        raise ConfigError(
            f"A length of {place.length} tokens is too short for a needle; ask for at least {place.length - room}."
        )
    wanted = room * place.depth_percent / 100
    before: list[int] = []
    after: list[int] = []
    for sentence in hay:
        ids = model.encode(sentence)
        # Once a sentence has gone behind the needle, so do all that follow.
        (after if after or len(before) + len(ids) / 2 > wanted else before).extend(ids)
        if len(before) + len(after) >= room:
            break
    before = before[:room]
    return [*head, *before, *needle_ids, *after[: room - len(before)], *tail]


def run(
    model: NeedleModel,
    wanted: Iterable[Place],
    *,
    language: Language,
    seed: int,
    hay: Callable[[], Iterable[str]],
    done: Collection[Place] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Cell]:
    """Ask the model about each cell that is not done yet, and yield the answers as they come.

    Args:
        model: who is asked.
        wanted: the cells, in this order.
        language: of hay, needle and question.
        seed: chooses the needles.
        hay: gives the sentences from the first on, as often as it is asked.
        done: cells to leave out.
        clock: seconds.

    Raises:
        ConfigError: a length is too short for the question alone.
    """
    for place in wanted:
        if place in done:
            continue
        needle = make_needle(place, language, seed)
        prompt_ids = build_prompt(model, place, needle, language=language, hay=hay())
        start = clock()
        answer = model.answer(prompt_ids, ANSWER_TOKENS)
        yield Cell(
            place=place,
            code=needle.code,
            answer=answer,
            found=is_found(answer, needle.code),
            num_prompt_tokens=len(prompt_ids),
            seconds=clock() - start,
        )
