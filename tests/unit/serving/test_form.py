"""A form is read as it was written, however it is cut into pieces, and bounded in every part."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.errors import RequestError
from qwenstack.serving.form import MAX_FIELD_BYTES, MAX_PARTS, FormReader

NAME = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)


def written(fields: dict[str, str], filename: str, content: bytes) -> tuple[str, bytes]:
    """A form as a client writes it."""
    request = httpx.Request("POST", "http://localhost", data=fields, files={"file": (filename, content)})
    return request.headers["content-type"], request.read()


def read(content_type: str, pieces: list[bytes]) -> tuple[FormReader, bytes]:
    reader = FormReader(content_type)
    return reader, b"".join(reader.feed(piece) for piece in pieces)


@given(
    fields=st.dictionaries(st.sampled_from(["purpose", "a", "名"]), st.text(max_size=30), max_size=3),
    filename=NAME,
    content=st.binary(max_size=300) | st.lists(st.sampled_from([b"\r\n", b"--", b"-", b"\r", b"x"])).map(b"".join),
    cuts=st.lists(st.integers(0, 900), max_size=6),
)
@settings(deadline=None)
def test_a_form_is_read_as_it_was_written_however_it_is_cut(
    fields: dict[str, str], filename: str, content: bytes, cuts: list[int]
) -> None:
    content_type, data = written(fields, filename, content)
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader, found = read(content_type, [data[begin:end] for begin, end in pairwise(ends)])
    assert found == content
    assert reader.fields == {name: value.encode("utf-8", "replace").decode() for name, value in fields.items()}
    assert reader.is_whole
    assert reader.filename is not None
    assert not read(content_type, [data[:-4]])[0].is_whole


@given(data=st.binary(max_size=400), cut=st.integers(0, 400))
@settings(deadline=None)
def test_sec_22_any_bytes_are_read_or_refused(data: bytes, cut: int) -> None:
    reader = FormReader("multipart/form-data; boundary=x")
    with contextlib.suppress(RequestError):
        for piece in (data[:cut], data[cut:]):
            assert len(reader.feed(piece)) <= len(data)


def part(headers: str, content: str = "") -> bytes:
    return f"--x\r\n{headers}\r\n\r\n{content}\r\n".encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (part('Content-Disposition: form-data; name="a"', "v") * 2, "came twice"),
        (b"".join(part(f'Content-Disposition: form-data; name="{n}"') for n in range(MAX_PARTS + 1)), "parts"),
        (part('Content-Disposition: form-data; name="a"', "v" * (MAX_FIELD_BYTES + 1)), "more than 1024 bytes"),
        (part("X: " + "y" * 3000), "damaged"),
        (part("\r\n".join(f"X{n}: y" for n in range(20))), "damaged"),
        (part("X: y"), "no name"),
        (part('Content-Disposition: attachment; name="a"'), "no name"),
        (part('Content-Disposition: form-data; name="other"; filename="f"'), "only `file`"),
        (part('Content-Disposition: form-data; name="file"; filename="f"') * 2, "came twice"),
        (b"nothing like a form", "damaged"),
    ],
)
def test_sec_22_forms_are_bounded(data: bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        read("multipart/form-data; boundary=x", [data])


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 71])
def test_sec_22_a_form_needs_a_short_boundary(content_type: str) -> None:
    with pytest.raises(RequestError, match="boundary"):
        FormReader(content_type)
