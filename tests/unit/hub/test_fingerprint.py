"""The hash of what a model computes: the same for the same content, never remembered for another."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from pathlib import Path

import pytest

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub import fingerprint
from qwenstack.hub.cache import ModelCache
from qwenstack.hub.fingerprint import checkpoint_fingerprint, identify_checkpoint
from qwenstack.hub.progress import SilentProgress

FILES = {
    "config.json": b"{}",
    "model-1.safetensors": b"one",
    "model-2.safetensors": b"two",
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"",
}


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "fingerprints.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read to be hashed; all files are at rest already."""
    read: list[str] = []

    def file_sha256(path: Path) -> str:
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(fingerprint, "file_sha256", file_sha256)
    monkeypatch.setattr(fingerprint, "_REST_NS", -(1 << 62))
    return read


def fingerprint_of(path: Path, memory: Path) -> bytes:
    return checkpoint_fingerprint(identify_checkpoint(path), memory)


def make_folder(path: Path, **changed: bytes) -> Path:
    path.mkdir(parents=True)
    for name, content in (FILES | changed).items():
        (path / name).write_bytes(content)
    return path


def test_it_is_the_hash_of_the_content_by_hand(tmp_path: Path, memory: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF weights")
    content = hashlib.sha256(b"GGUF weights").digest()
    fields = [b"qwenstack checkpoint 1", b"", struct.pack("<Q", 12), content]
    expected = hashlib.sha256(b"".join(struct.pack("<Q", len(field)) + field for field in fields)).digest()
    assert fingerprint_of(path, memory) == expected


def test_the_place_and_the_name_of_a_file_do_not_matter(tmp_path: Path, memory: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"weights")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.gguf").write_bytes(b"weights")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "a.gguf")
    places = (tmp_path / "a.gguf", tmp_path / "folder" / "b.gguf", tmp_path / "folder", tmp_path / "link.gguf")
    assert len({fingerprint_of(place, memory) for place in places}) == 1


@pytest.mark.parametrize("name", ["config.json", "model-1.safetensors", "model.safetensors.index.json"])
def test_a_change_of_what_is_computed_is_noticed(tmp_path: Path, memory: Path, name: str) -> None:
    one, other = make_folder(tmp_path / "one"), make_folder(tmp_path / "other", **{name: b"[]"})
    assert fingerprint_of(one, memory) != fingerprint_of(other, memory)


def test_swapped_shards_and_a_further_shard_are_noticed(tmp_path: Path, memory: Path) -> None:
    folders = [
        make_folder(tmp_path / "one"),
        make_folder(tmp_path / "two", **{"model-1.safetensors": b"two", "model-2.safetensors": b"one"}),
        make_folder(tmp_path / "three", **{"model-3.safetensors": b""}),
    ]
    assert len({fingerprint_of(folder, memory) for folder in folders}) == 3


def test_the_tokenizer_is_no_part_of_it(tmp_path: Path, memory: Path) -> None:
    one, other = make_folder(tmp_path / "one"), make_folder(tmp_path / "other", **{"tokenizer.json": b"[]"})
    assert fingerprint_of(one, memory) == fingerprint_of(other, memory)


def test_a_second_start_reads_nothing(tmp_path: Path, memory: Path, reads: list[str]) -> None:
    folder = make_folder(tmp_path / "model")
    first = fingerprint_of(folder, memory)
    assert len(reads) == 4
    assert fingerprint_of(folder, memory) == first
    assert len(reads) == 4
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600


def test_a_changed_file_is_read_again_also_where_size_and_time_were_kept(
    tmp_path: Path, memory: Path, reads: list[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    before, status = fingerprint_of(path, memory), path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint_of(path, memory) != before
    assert len(reads) == 2
    assert len(json.loads(memory.read_text())["files"]) == 1


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path: Path, memory: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    fingerprint_of(path, memory)
    assert not memory.exists()


def test_a_file_that_changes_after_it_was_opened_has_no_fingerprint(tmp_path: Path, memory: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    identity = identify_checkpoint(path)
    path.write_bytes(b"others!")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelFormatError, match="changed while"):
        checkpoint_fingerprint(identity, memory)
    path.unlink()
    with pytest.raises(ModelFormatError, match=r"model\.gguf"):
        checkpoint_fingerprint(identity, memory)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2, "files": []}',
        b'{"format": 1, "files": 5}',
        b'{"format": 1, "files": [5, {}, {"path": "x", "sha256": "zz"}]}',
    ],
)
def test_sec_32_a_damaged_memory_is_an_empty_one(
    tmp_path: Path, memory: Path, reads: list[str], content: bytes
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    memory.parent.mkdir()
    memory.write_bytes(content)
    first = fingerprint_of(path, memory)
    assert fingerprint_of(path, memory) == first
    assert len(reads) == 1


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    (tmp_path / "file").touch()
    assert fingerprint_of(path, tmp_path / "file" / "memory.json")
    assert reads == ["model.gguf"]


def test_the_hash_that_was_compared_at_the_download_is_used_until_the_file_changes(
    tmp_path: Path, memory: Path, reads: list[str]
) -> None:
    cache, listener = ModelCache(tmp_path / "models"), SilentProgress()
    with cache.lock("tiny", listener):
        path = cache.partial("tiny") / "tiny.gguf"
        path.write_bytes(b"weights")
        landed = cache.land("tiny", "tiny", {path: "somewhere"})
    manifest = landed.path.parent / ".manifest.json"
    later = landed.path.stat().st_ctime_ns + 1
    os.utime(manifest, ns=(later, later))
    (tmp_path / "same.gguf").write_bytes(b"weights")
    expected = fingerprint_of(tmp_path / "same.gguf", memory)
    assert fingerprint_of(landed.path, memory) == expected
    assert reads == ["same.gguf"]
    landed.path.write_bytes(b"WEIGHTS")
    assert fingerprint_of(landed.path, tmp_path / "another.json") != expected
    assert reads == ["same.gguf", "tiny.gguf"]


def test_there_is_no_fingerprint_of_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="no model"):
        identify_checkpoint(tmp_path)
    with pytest.raises(ModelFormatError, match=r"absent\.gguf"):
        identify_checkpoint(tmp_path / "absent.gguf")
