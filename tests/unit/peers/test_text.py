"""The text of a perplexity: a file, or the paragraphs of XQuAD."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenstack.core.errors import ConfigError
from qwenstack.peers.text import read_text, read_xquad


def test_xquad_is_its_paragraphs_chinese_first(tmp_path: Path):
    (tmp_path / "reading").mkdir()
    for language, words in (("zh", ["一", "二"]), ("en", ["one"])):
        squad = {"data": [{"paragraphs": [{"context": word, "qas": []} for word in words]}]}
        (tmp_path / "reading" / f"xquad_{language}.json").write_text(json.dumps(squad), encoding="utf-8")
    assert read_xquad(tmp_path) == "一\n\n二\n\none"


def test_a_text_that_cannot_be_read_is_a_sentence(tmp_path: Path):
    with pytest.raises(ConfigError, match="--text"):
        read_xquad(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_text(tmp_path / "latin")
