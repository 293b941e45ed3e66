from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.errors import RequestError
from qwenstack.serving.strict_json import parse_json

BAD = [
    b"",
    b"{",
    b"{'a': 1}",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": -Infinity}',
    b'{"a": 1e999}',
    b'{"a": 01}',
    b'{"a": 1,}',
    b'{"a": 1} x',
    b'{"a": "\\ud800"}',
    b'{"a": "\\udc00\\ud800"}',
    b'{"\\ud800": 1}',
    b'"\xed\xa0\x80"',
    b'"\xff"',
    b'"a\x00b"',
    b"\xef\xbb\xbf{}",
    b'{"a":' + b"9" * 5000 + b"}",
    b"[" * 65 + b"]" * 65,
    b"[" * 200_000,
    b"[" * 200_000 + b"]" * 200_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b"[" + b"[]," * 50_000 + b"[]]",
    b'"' + b'\\"' * 100_000 + b"[" * 60_000,
    json.dumps({str(number): 0 for number in range(1025)}).encode(),
    json.dumps([[{str(number): 0 for number in range(1025)}]]).encode(),
]


@pytest.mark.parametrize("data", BAD, ids=lambda data: repr(data[:20]))
def test_sec_22_what_is_not_plain_json_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_json(data)
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 64 + b"]" * 64,
        b'"' + b'\\"[{' * 60_000 + b'"',
        b'{"a":1,"a":2}',
        '"你好 😀"'.encode(),
        b'"\\ud83d\\ude00"',
        b"5",
    ],
)
def test_what_is_plain_json_is_read_as_others_read_it(data: bytes) -> None:
    assert parse_json(data) == json.loads(data)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(JSON_VALUES, st.booleans())
@settings(deadline=None)
def test_what_one_writes_is_what_is_read(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789eE+-.\\u tfn', max_size=60).map(str.encode))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data)
    except RequestError:
        return
    assert value == json.loads(data)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/qwen3/generate"])
async def test_every_endpoint_answers_bad_json_with_400(client: httpx.AsyncClient, path: str) -> None:
    for data in (*BAD, b"[]", b"5", b"null", b'"x"'):
        response = await client.post(path, content=data, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, data[:80]
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.anyio
async def test_a_lone_surrogate_is_called_by_its_name(client: httpx.AsyncClient) -> None:
    data = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    response = await client.post("/v1/chat/completions", content=data, headers={"Content-Type": "application/json"})
    assert "lone surrogate" in response.json()["error"]["message"]


def test_the_place_of_a_wrong_byte_is_that_in_the_body():
    with pytest.raises(RequestError, match="byte 13 is not UTF-8"):
        parse_json(b'{"a": ["abcde\xff"]}')
