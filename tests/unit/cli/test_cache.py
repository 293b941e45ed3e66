"""`qwenstack cache`: what lies on the disk is shown, and goes when it shall go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenstack.cli.app import main
from qwenstack.engine.cache_key import child_key
from qwenstack.engine.kv_store import KVStore, KVStoreConfig, default_folder


@pytest.fixture
def filled(home: Path) -> Path:
    """The user's own cache folder, with three blocks in it."""
    folder = default_folder()
    assert home in folder.parents
    store = KVStore(KVStoreConfig(folder=folder, min_free_bytes=0), payload_bytes=5000)
    for token in range(3):
        store.put(child_key(bytes(32), [token]), bytes(32), [token], lambda: bytes(5000))
    store.close()
    return folder


def test_show_says_where_how_large_and_how_old(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    oldest = min(path.stat().st_mtime for path in filled.glob("*.kv"))
    assert shown == {
        "folder": str(filled),
        "blocks": 3,
        "bytes": 3 * 8192,
        "oldest_use": oldest,
        "limit_bytes": 4 << 30,
        "max_age_s": 604_800,
    }
    assert main(["cache", "show"]) == 0
    out = capsys.readouterr().out
    assert "blocks      3" in out
    assert "limit: 7 days" in out


def test_clear_removes_the_blocks_and_nothing_else(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (filled / "tenant-secret").write_bytes(b"s" * 32)
    (filled / ".dead.tmp").write_bytes(b"half a block")
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"removed 3 blocks, 0.0 MB, from {filled}\n"
    assert [path.name for path in filled.iterdir()] == ["tenant-secret"]


def test_a_folder_that_is_not_there_is_empty_and_is_not_made(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "show"]) == 0
    assert main(["cache", "clear"]) == 0
    out = capsys.readouterr().out
    assert "oldest use  none" in out
    assert "removed 0 blocks" in out
    assert not default_folder().exists()


def test_the_folder_of_the_settings_is_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "show", "--json", "--set", f"engine.prefix_cache_dir={tmp_path / 'other'}"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "other")


def test_sec_32_a_folder_that_others_can_fill_is_not_touched(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled.chmod(0o777)
    assert main(["cache", "clear"]) == 2
    assert "written to by others" in capsys.readouterr().err
    assert len(list(filled.glob("*.kv"))) == 3


def test_sec_32_a_projects_file_does_not_decide_where_conversations_go(capsys: pytest.CaptureFixture[str]) -> None:
    Path("qwenstack.toml").write_text('[engine]\nprefix_cache_dir = "/tmp"\n')
    assert main(["cache", "show"]) == 2
    assert "prefix_cache_dir" in capsys.readouterr().err
