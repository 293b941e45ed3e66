"""Progress for logs: a few lines, and none where there is nothing to tell."""

from __future__ import annotations

import pytest

from qwenstack.cli.progress import DownloadProgress


def test_a_log_gets_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]):
    with DownloadProgress() as progress:
        progress.say("Fetching m from the package index.")
        for done in range(0, 100_000_001, 1_000_000):
            progress.bytes(done, 100_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "Fetching m from the package index."
    assert lines[1] == "10 of 100 MB"
    assert lines[-1] == "100 of 100 MB"
    assert len(lines) == 11


def test_a_model_that_is_here_already_is_not_worth_a_word(capsys: pytest.CaptureFixture[str]):
    with DownloadProgress():
        pass
    assert capsys.readouterr() == ("", "")


def test_an_unknown_size_does_not_divide_by_zero():
    with DownloadProgress() as progress:
        progress.bytes(5, 0)


def test_a_terminal_gets_a_bar_and_sentences_above_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with DownloadProgress() as progress:
        progress.bytes(1_000_000, 2_000_000)
        progress.say("[not markup]")
        progress.bytes(2_000_000, 2_000_000)
    err = capsys.readouterr().err
    assert "[not markup]" in err
    assert "2.0/2.0 MB" in err
