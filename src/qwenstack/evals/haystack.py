"""The hay: sentences without meaning for the question, made here or cut from a text of the user's own."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal

Language = Literal["en", "zh"]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
_PARTS: dict[Language, tuple[Sequence[str], ...]] = {
    "en": (
        (
            "Early in the morning",
            "Late in the evening",
            "Before the rain came",
            "On the first day of spring",
            "At noon",
        ),
        ("the old gardener", "a young teacher", "the baker's daughter", "a tired traveller", "the quiet fisherman"),
        ("walked slowly along the river", "sat down under the chestnut tree", "crossed the empty market square"),
        ("and thought about", "and told the children about", "and wrote a long letter about", "and laughed about"),
        (
            "the apples of last autumn.",
            "a song from the mountains.",
            "the snow on the roofs.",
            "ships with white sails.",
        ),
    ),
    "zh": (
        ("清晨，", "傍晚时分，", "下雨之前，", "立春那天，", "正午时候，"),
        ("老园丁", "年轻的老师", "面包师的女儿", "疲惫的旅人", "沉默的渔夫"),
        ("慢慢走过河边，", "坐在栗子树下，", "穿过空荡荡的集市，"),
        ("想起了", "给孩子们讲起", "在信里写到", "笑着谈起"),
        ("去年秋天的苹果。", "山里的一首歌。", "屋顶上的积雪。", "白帆的大船。"),
    ),
}


def made_sentences(language: Language, seed: int) -> Iterator[str]:
    """Yield sentences without end, without numbers, the same ones for a seed."""
    chooser = random.Random(f"{language} {seed}")  # noqa: S311 - hay, not secrets
    glue = " " if language == "en" else ""
    while True:
        yield glue.join(chooser.choice(choices) for choices in _PARTS[language]) + glue


def sentences_of(text: str, language: Language) -> Iterator[str]:
    """Yield the sentences of a text, over and over.

    Raises:
        ValueError: the text has none.
    """
    glue = " " if language == "en" else ""
    sentences = [sentence.strip() + glue for sentence in _SENTENCE_END.split(text) if sentence.strip()]
    if not sentences:
        raise ValueError("the text has no sentence")
    while True:
        yield from sentences
