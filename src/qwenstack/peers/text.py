"""The text whose perplexity is measured."""

from __future__ import annotations

from pathlib import Path

import msgspec

from qwenstack.core.errors import ConfigError

_XQUAD = ("reading/xquad_zh.json", "reading/xquad_en.json")
"""The same 240 paragraphs of Wikipedia in both languages, in SQuAD's format."""


class _Paragraph(msgspec.Struct):
    context: str


class _Article(msgspec.Struct):
    paragraphs: list[_Paragraph]


class _Squad(msgspec.Struct):
    data: list[_Article]


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
    paragraphs: list[str] = []
    for name in _XQUAD:
        try:
            squad = msgspec.json.decode((folder / name).read_bytes(), type=_Squad)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"XQuAD cannot be read: {error}. Give a UTF-8 file with `--text`.") from error
        paragraphs.extend(paragraph.context for article in squad.data for paragraph in article.paragraphs)
    return "\n\n".join(paragraphs)
