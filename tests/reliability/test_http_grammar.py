"""The measure itself, on cases worked out by hand."""

from __future__ import annotations

import pytest

from reliability.framing import sees_too_much
from reliability.http_grammar import MalformedError, Understood, read_answers, read_requests

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\n"


def test_requests_follow_one_another() -> None:
    data = (
        GET
        + POST
        + b"Content-Length: 2\r\n\r\n{}"
        + POST
        + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n[]\r\n0\r\n\r\n"
        + GET
    )
    assert [(one.method, one.body) for one in read_requests(data)] == [
        ("GET", ""),
        ("POST", "{}"),
        ("POST", "[]"),
        ("GET", ""),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 2\r\nContent-Length: 2\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length : 2\r\n",
        b"X: y\r\n Content-Length: 2\r\n",
        b"X: y\nContent-Length: 2\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
    ],
)
def test_nothing_is_read_from_where_readers_differ(fields: bytes) -> None:
    assert read_requests(GET + POST + fields + b"\r\n{}" + GET) == [Understood("GET", "/a", "")]


def test_a_body_without_an_end_hides_what_is_behind_it() -> None:
    (cut,) = read_requests(POST + b"Content-Length: 900\r\n\r\n" + GET)
    assert (cut.is_whole, cut.body) == (False, GET.decode())
    (wrong,) = read_requests(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n" + GET)
    assert not wrong.is_whole


def test_a_smuggled_request_is_noticed() -> None:
    sent = POST + b"Content-Length: %d\r\n\r\n" % len(GET) + GET
    honest = Understood("POST", "/b", GET.decode())
    assert not sees_too_much(sent, [honest])
    assert not sees_too_much(sent, [])
    assert sees_too_much(sent, [Understood("POST", "/b", ""), Understood("GET", "/a", "")])
    assert sees_too_much(sent, [Understood("POST", "/b", "another body")])


def test_answers_are_read_whole_and_nothing_stands_between_them() -> None:
    ok = b"HTTP/1.1 200 OK\r\nX-Request-Id: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    bad = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
    assert [(one.status, one.request_id) for one in read_answers(ok + bad, ["GET", "GET"])] == [(200, b"7"), (400, b"")]
    assert len(read_answers(ok[:-7], ["GET"])) == 1
    with pytest.raises(MalformedError):
        read_answers(ok[:-5] + bad, ["GET"])
    with pytest.raises(MalformedError):
        read_answers(ok + b"junk\r\n\r\n", ["GET"])
