"""The folder of fetched models: whole or not at all, and nobody else's."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from qwenstack.core.errors import ConfigError, ModelFormatError
from qwenstack.hub.cache import MANIFEST, ModelCache
from qwenstack.hub.model_folder import is_plain_name


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "models")


def land(cache: ModelCache, listener, slug: str = "tiny", **contents: bytes):
    with cache.lock(slug, listener):
        origins = {}
        for name, content in (contents or {"tiny.gguf": b"weights"}).items():
            path = cache.partial(slug) / name
            path.write_bytes(content)
            origins[path] = "somewhere"
        return cache.land(slug, slug, origins)


def test_a_landed_model_is_found_with_its_hash(cache, listener):
    landed = land(cache, listener)
    assert cache.find("tiny") == landed
    assert landed.path.read_bytes() == b"weights"
    assert landed.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert landed.bytes == 7
    assert cache.models() == [landed]
    assert not (cache.path / "tiny.partial").exists()


def test_a_model_of_several_files_is_its_folder(cache, listener):
    landed = land(cache, listener, **{"config.json": b"{}", "model.safetensors": b"w"})
    assert landed.path == cache.path / "tiny"
    lines = [
        f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in (("config.json", b"{}"), ("model.safetensors", b"w"))
    ]
    assert landed.sha256 == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_sec_32_nobody_else_can_look_into_the_cache(cache, listener):
    cache.path.mkdir(mode=0o777)
    land(cache, listener)
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o700


def test_sec_32_a_cache_of_another_user_is_refused(cache, listener, monkeypatch):
    land(cache, listener)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    os.chown(cache.path, 54321, -1) if os.getuid() == 0 else pytest.skip("only root can give files away")
    with pytest.raises(ConfigError, match="belongs to another user"):
        cache.find("tiny")


@pytest.mark.parametrize("damage", ["file removed", "file cut", "manifest cut", "manifest removed", "manifest foreign"])
def test_a_damaged_entry_counts_as_absent_and_can_be_replaced(cache, listener, damage):
    folder = land(cache, listener).path.parent
    if damage == "file removed":
        (folder / "tiny.gguf").unlink()
    elif damage == "file cut":
        (folder / "tiny.gguf").write_bytes(b"wei")
    elif damage == "manifest cut":
        (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:40])
    elif damage == "manifest removed":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text('{"format": 1, "name": "x", "files": [{"name": "../../etc/passwd"}]}')
    assert cache.find("tiny") is None
    assert cache.models() == []
    assert land(cache, listener).bytes == 7


def test_sec_32_verify_notices_a_flipped_bit(cache, listener):
    path = land(cache, listener).path
    cache.verify("tiny")
    path.write_bytes(b"weightt")
    assert cache.find("tiny") is not None, "a start does not hash"
    with pytest.raises(ModelFormatError, match=f"expected {hashlib.sha256(b'weights').hexdigest()}"):
        cache.verify("tiny")


def test_no_file_of_a_model_can_take_the_manifests_place():
    assert not is_plain_name(MANIFEST)


def test_the_choice_of_auto_is_remembered(cache, listener):
    assert cache.remembered_choice() is None
    land(cache, listener)
    cache.remember_choice("tiny")
    assert cache.remembered_choice() == "tiny"
    (cache.path / "auto.json").write_text('{"model": "../../etc"}')
    assert cache.remembered_choice() is None


def test_a_cache_that_cannot_be_made_is_refused_with_the_way_out(tmp_path, listener):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="QWENSTACK_CACHE_DIR"),
        ModelCache(tmp_path / "file" / "models").lock("tiny", listener),
    ):
        pass


def test_an_absent_cache_is_empty(cache):
    assert cache.models() == []
    assert cache.find("tiny") is None
    assert not cache.path.exists()
