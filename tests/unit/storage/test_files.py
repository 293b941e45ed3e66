"""Stored files: a row and a content, both or neither, and what a crash leaves is swept."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qwenstack.core.errors import RequestError, StorageError
from qwenstack.storage import Database, StoredFile, StoredFiles, open_database
from qwenstack.storage.content_folder import ORPHAN_AGE_S, ContentFolder

QUOTA = 100


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


def keep(
    store: StoredFiles, content: bytes, *, tenant: str = "t", purpose: str = "batch", lifetime_s: float | None = None
) -> StoredFile:
    draft = store.begin()
    draft.write(content)
    return store.keep(draft, tenant=tenant, purpose=purpose, filename="f", lifetime_s=lifetime_s)


def test_what_a_crash_leaves_is_removed_when_nobody_can_want_it(tmp_path: Path, database: Database) -> None:
    clock = Clock()
    store = StoredFiles(database, tmp_path / "files", quota_bytes=QUOTA, clock=clock)
    file = keep(store, b"kept")
    unfinished, sealed = store.begin(), store.begin()
    unfinished.write(b"half")
    sealed.write(b"without a row")
    sealed.seal()
    (tmp_path / "files" / "a file of somebody's").write_text("x")
    assert store.sweep() == 0
    clock.now += ORPHAN_AGE_S + 10
    assert store.sweep() == 2
    unfinished.discard()
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == sorted(["a file of somebody's", file.id])
    with store.open(file) as content:
        assert content.read() == b"kept"
    assert store.sweep() == 0


def test_a_file_whose_row_cannot_be_written_leaves_nothing(tmp_path: Path, database: Database) -> None:
    store = StoredFiles(database, tmp_path / "files", quota_bytes=QUOTA)
    with pytest.raises(RequestError, match="would have more"):
        keep(store, b"x" * (QUOTA + 1))
    assert list((tmp_path / "files").iterdir()) == []


def test_sec_32_a_folder_is_this_users_alone_and_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir(mode=0o777)
    ContentFolder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(StorageError, match="cannot be used"):
        ContentFolder(link)
    (tmp_path / "plain").touch()
    with pytest.raises(StorageError, match="cannot be used"):
        ContentFolder(tmp_path / "plain")


@pytest.mark.parametrize("name", ["../q.db", "file-", "file-" + "0" * 31, "file-" + "0" * 32 + "/", "/etc/passwd"])
def test_sec_11_only_ids_of_the_server_are_opened_or_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / "q.db").touch()
    folder = ContentFolder(tmp_path / "files")
    with pytest.raises(FileNotFoundError):
        folder.open(name)
    folder.remove(name)
    assert (tmp_path / "q.db").exists()


class FilesMachine(RuleBasedStateMachine):
    """Any order of events, against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self._temporary = tempfile.TemporaryDirectory()
        folder = Path(self._temporary.name)
        self.clock = Clock()
        self.database = open_database(f"sqlite:///{folder / 'q.db'}")
        self.folder = folder / "files"
        self.store = StoredFiles(self.database, self.folder, quota_bytes=QUOTA, clock=self.clock)
        self.kept: dict[str, tuple[StoredFile, bytes]] = {}

    def teardown(self) -> None:
        self.database.close()
        self._temporary.cleanup()

    def own(self, tenant: str) -> list[StoredFile]:
        return [file for file, _ in self.kept.values() if file.tenant == tenant]

    @rule(
        content=st.binary(max_size=60),
        tenant=st.sampled_from("tu"),
        purpose=st.sampled_from(["batch", "evals"]),
        lifetime_s=st.none() | st.sampled_from([10, 100]),
    )
    def add(self, content: bytes, tenant: str, purpose: str, lifetime_s: int | None) -> None:
        used = sum(file.size_bytes for file in self.own(tenant))
        try:
            file = keep(self.store, content, tenant=tenant, purpose=purpose, lifetime_s=lifetime_s)
        except RequestError:
            assert used + len(content) > QUOTA
        else:
            assert used + len(content) <= QUOTA
            self.kept[file.id] = (file, content)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), tenant=st.sampled_from("tu"))
    def remove(self, data: st.DataObject, tenant: str) -> None:
        file, _ = self.kept[data.draw(st.sampled_from(list(self.kept)))]  # their ids are random, their order is not
        is_seen = file.tenant == tenant and self.is_alive(file)
        assert self.store.delete(file.id, tenant=tenant) == is_seen
        if is_seen:
            del self.kept[file.id]

    @rule(seconds=st.sampled_from([1, 50, 5000]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def sweep(self) -> None:
        expired = [file_id for file_id, (file, _) in self.kept.items() if not self.is_alive(file)]
        assert self.store.sweep() == len(expired)
        for file_id in expired:
            del self.kept[file_id]

    @rule(tenant=st.sampled_from("tu"), limit=st.integers(1, 3), order=st.sampled_from(["asc", "desc"]))
    def walk(self, tenant: str, limit: int, order: str) -> None:
        found: list[StoredFile] = []
        while True:
            after = found[-1].id if found else None
            page = self.store.page(tenant=tenant, after=after, limit=limit, order=order, purpose=None)  # type: ignore[arg-type]
            assert page is not None
            found += page[0]
            if not page[1]:
                break
        expected = [file for file in self.own(tenant) if self.is_alive(file)]
        expected.sort(key=lambda file: (file.created_at_ms, file.id), reverse=order == "desc")
        assert found == expected

    @invariant()
    def contents_are_those_of_the_rows(self) -> None:
        assert {path.name for path in self.folder.iterdir()} == set(self.kept)
        for file, content in self.kept.values():
            assert (self.store.find(file.id, tenant=file.tenant) == file) == self.is_alive(file)
            with self.store.open(file) as opened:
                assert opened.read() == content
        assert self.folder.stat().st_mode & 0o777 == 0o700

    def is_alive(self, file: StoredFile) -> bool:
        return file.expires_at_ms is None or file.expires_at_ms > int(self.clock.now * 1000)


FilesMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestFilesMachine = FilesMachine.TestCase
