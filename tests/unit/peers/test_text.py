"""The text of a perplexity: a file, or the paragraphs of XQuAD."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from qwenstack.core.errors import ConfigError
from qwenstack.peers.text import read_language, read_text, read_xquad


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "reading").mkdir()
    (tmp_path / "parallel").mkdir()
    for language, words in (("zh", ["一", "二"]), ("en", ["one"])):
        squad = {"data": [{"paragraphs": [{"context": word, "qas": []} for word in words]}]}
        (tmp_path / "reading" / f"xquad_{language}.json").write_text(json.dumps(squad), encoding="utf-8")
    chapters = [{"page": "a", "zh": "章", "en": None}, {"page": "b", "zh": None, "en": "chapter"}]
    lines = "\n".join(json.dumps(chapter) for chapter in chapters)
    (tmp_path / "parallel" / "d2l_chapters.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path


def test_xquad_is_its_paragraphs_chinese_first(data: Path):
    assert read_xquad(data) == "一\n\n二\n\none"


def test_a_language_is_its_paragraphs_and_then_its_chapters(data: Path):
    assert read_language(data, "zh") == "一\n\n二\n\n章"
    assert read_language(data, "en") == "one\n\nchapter"


def test_a_text_that_cannot_be_read_is_a_sentence(tmp_path: Path):
    with pytest.raises(ConfigError, match="--text"):
        read_xquad(tmp_path)
    with pytest.raises(ConfigError, match="--text"):
        read_language(tmp_path, "zh")
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_text(tmp_path / "latin")
