"""The text whose perplexity is measured."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from qwenstack.core.errors import ConfigError

Language: TypeAlias = Literal["zh", "en"]

_XQUAD = "reading/xquad_{}.json"
"""The same 240 paragraphs of Wikipedia in each language, in SQuAD's format."""
_CHAPTERS = "parallel/d2l_chapters.jsonl.gz"
"""Chapters of "Dive into Deep Learning" in both languages, with their formulas and code."""


class _Paragraph(msgspec.Struct):
    context: str


class _Article(msgspec.Struct):
    paragraphs: list[_Paragraph]


class _Squad(msgspec.Struct):
    data: list[_Article]


class _Chapter(msgspec.Struct):
    zh: str | None = None
    en: str | None = None


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ConfigError: it is not there or no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read as text: {error}. Give a UTF-8 file.") from error


def read_xquad(folder: Path) -> str:
    """Return the paragraphs of XQuAD, Chinese and then English, from a folder of test data.

    Raises:
        ConfigError: they are not there.
    """
    return "\n\n".join([*_paragraphs(folder, "zh"), *_paragraphs(folder, "en")])


def read_language(folder: Path, language: Language) -> str:
    """Return the paragraphs of XQuAD in one language and, for more of it, the chapters of a textbook.

    Raises:
        ConfigError: they are not there.
    """
    try:
        lines = gzip.decompress((folder / _CHAPTERS).read_bytes()).splitlines()
        chapters = [msgspec.json.decode(line, type=_Chapter) for line in lines]
    except (OSError, EOFError, msgspec.MsgspecError) as error:
        raise ConfigError(f"The chapters cannot be read: {error}. Give a UTF-8 file with `--text`.") from error
    texts = [chapter.zh if language == "zh" else chapter.en for chapter in chapters]
    return "\n\n".join([*_paragraphs(folder, language), *filter(None, texts)])


def _paragraphs(folder: Path, language: Language) -> list[str]:
    try:
        squad = msgspec.json.decode((folder / _XQUAD.format(language)).read_bytes(), type=_Squad)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"XQuAD cannot be read: {error}. Give a UTF-8 file with `--text`.") from error
    return [paragraph.context for article in squad.data for paragraph in article.paragraphs]
