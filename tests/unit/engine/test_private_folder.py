"""A folder of one user: nobody else's files are read, nothing half written is seen, nobody leads us elsewhere."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from qwenstack.core.errors import ConfigError
from qwenstack.engine.private_folder import ForeignFileError, PrivateFolder
from qwenstack.engine.tenant_secret import load_tenant_secret

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def folder(tmp_path: Path) -> PrivateFolder:
    return PrivateFolder(tmp_path / "cache" / "prefix")


def test_sec_32_folder_and_files_are_for_their_owner_alone(folder: PrivateFolder) -> None:
    folder.write("a", [b"1", memoryview(b"23")], modified_at=1000)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder.path / "a").stat().st_mode) == 0o600
    assert folder.read("a", 3) == (b"123", 1000)
    assert [path.name for path in folder.path.iterdir()] == ["a"]


def test_sec_32_a_folder_that_others_could_look_into_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    PrivateFolder(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_sec_32_a_folder_that_others_could_fill_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    with pytest.raises(ConfigError, match="written to by others"):
        PrivateFolder(tmp_path / "shared")


@needs_root
def test_sec_32_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 54321, -1)
    with pytest.raises(ConfigError, match=r"another user \(uid 54321\)"):
        PrivateFolder(tmp_path / "theirs")


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_sec_32_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "prefix"
    if kind == "file":
        path.touch()
    else:
        target = tmp_path / "target"
        if kind == "link":
            target.mkdir()
        path.symlink_to(target)
    with pytest.raises(ConfigError, match="link or a file"):
        PrivateFolder(path)


def test_sec_32_a_link_in_the_place_of_a_file_is_not_followed(folder: PrivateFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"secret")
    victim.chmod(0o600)
    (folder.path / "a").symlink_to(victim)
    with pytest.raises(ForeignFileError):
        folder.read("a", 6)
    assert list(folder.entries()) == []
    folder.touch("a", 5)
    assert victim.stat().st_mtime > 1000
    folder.write("a", [b"mine"], modified_at=1)
    assert victim.read_bytes() == b"secret"
    assert folder.read("a", 4)[0] == b"mine"


def test_sec_32_a_link_in_the_place_of_the_folder_changes_nothing(folder: PrivateFolder, tmp_path: Path) -> None:
    folder.write("a", [b"mine"], modified_at=1)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "a").write_bytes(b"evil")
    folder.path.rename(tmp_path / "moved")
    folder.path.symlink_to(tmp_path / "evil")
    assert folder.read("a", 4)[0] == b"mine"
    folder.write("b", [b"mine"], modified_at=1)
    assert sorted(path.name for path in (tmp_path / "evil").iterdir()) == ["a"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "longer", "shorter", "open to others"])
def test_sec_32_what_is_not_exactly_our_file_is_not_read(folder: PrivateFolder, kind: str) -> None:
    path = folder.path / "a"
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"1234" if kind == "longer" else b"12" if kind == "shorter" else b"123")
        path.chmod(0o644 if kind == "open to others" else 0o600)
    with pytest.raises(ForeignFileError):
        folder.read("a", 3)


@needs_root
def test_sec_32_another_users_file_is_not_read(folder: PrivateFolder) -> None:
    folder.write("a", [b"123"], modified_at=1)
    os.chown(folder.path / "a", 54321, -1)
    with pytest.raises(ForeignFileError):
        folder.read("a", 3)


def test_a_write_that_fails_leaves_what_was_there(folder: PrivateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("a", [b"old"], modified_at=1)
    monkeypatch.setattr(os, "writev", lambda *_: 1)
    with pytest.raises(OSError, match="No space left"):
        folder.write("a", [b"new"], modified_at=2)
    monkeypatch.undo()
    assert folder.read("a", 3) == (b"old", 1)
    assert [path.name for path in folder.path.iterdir()] == ["a"]


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(folder: PrivateFolder) -> None:
    (folder.path / ".dead.tmp").write_bytes(b"half")
    living = folder.path / ".living.tmp"
    living.write_bytes(b"half")
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        folder.remove_leftovers()
        assert [path.name for path in folder.path.iterdir()] == [".living.tmp"]
    folder.remove_leftovers()
    assert list(folder.path.iterdir()) == []


def test_the_tenant_secret_is_made_once_and_kept_from_others(folder: PrivateFolder) -> None:
    secret = load_tenant_secret(folder)
    assert len(secret) == 32
    assert load_tenant_secret(PrivateFolder(folder.path)) == secret
    assert stat.S_IMODE((folder.path / "tenant-secret").stat().st_mode) == 0o600
    assert [path.name for path in folder.path.iterdir()] == ["tenant-secret"]


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 33])
def test_a_damaged_tenant_secret_is_replaced(folder: PrivateFolder, damage: bytes) -> None:
    before = load_tenant_secret(folder)
    (folder.path / "tenant-secret").write_bytes(damage)
    after = load_tenant_secret(folder)
    assert len(after) == 32
    assert after != before
    assert load_tenant_secret(folder) == after


def test_what_cannot_be_replaced_is_an_error_and_not_an_endless_loop(folder: PrivateFolder) -> None:
    (folder.path / "tenant-secret").mkdir()
    with pytest.raises(OSError, match="tenant-secret"):
        load_tenant_secret(folder)


def test_those_who_start_together_agree_on_one_secret(folder: PrivateFolder) -> None:
    found: list[bytes] = []
    start = threading.Barrier(8)

    def load() -> None:
        own = PrivateFolder(folder.path)
        start.wait()
        found.append(load_tenant_secret(own))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_secret_that_is_swept_away_while_it_is_made_is_made_again(
    folder: PrivateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is there before it is locked; a sweep in between takes it for a dead writer's."""
    lock, sweeps = fcntl.flock, iter([True, True])

    def sweep_then_lock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and next(sweeps, False):
            folder.remove_leftovers()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_then_lock)
    secret = load_tenant_secret(folder)
    assert next(sweeps, None) is None
    assert load_tenant_secret(PrivateFolder(folder.path)) == secret
    assert [path.name for path in folder.path.iterdir()] == ["tenant-secret"]
