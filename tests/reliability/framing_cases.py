"""Byte strings that two readers of HTTP could cut into requests differently."""

from __future__ import annotations

import random

LINE_ENDS = (b"\r\n",) * 12 + (b"\n", b"\r", b"\r\r\n", b"\n\r\n")
METHODS = (b"GET", b"POST", b"POST", b"POST", b"HEAD", b"OPTIONS", b"DELETE", b"get", b"CONNECT", b"PRI", b"G@T")
VERSIONS = (b"HTTP/1.1",) * 12 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"HTTP/1.1 ", b"HTTP/1.10")
TARGETS = (
    b"/v1/models/%s",
    b"/v1/models/%s?a=b",
    b"http://evil.example/v1/models/%s",
    b"http://localhost/v1/models/%s",
    b"/v1/models/%s#x",
    b"//v1/models/%s",
    b"/v1/models/\xff%s",
    b"/v1/models/a b%s",
    b"*",
    b"localhost:80",
    b"/v1/%%6dodels/%s",
)
CHUNK_EXTENSIONS = (b"", b"", b"", b";a=b", b";" + b"x" * 300, b" ", b";a=\n", b"\t;a", b";\x00")
TRAILERS = (b"", b"", b"", b"X: y\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"a b\r\n")
ODD_FIELDS = (
    b"Content-Length: %d",
    b"content-length: +%d",
    b"Content-Length: 0x%x",
    b"Content-Length: %d, %d",
    b"Content-Length : %d",
    b" Content-Length: %d",
    b"Content-Length:\t%d",
    b"Content-Length: %d\r\n %d",
    b"Content_Length: %d",
    b"Content-Length: 0%d",
    b"Content-Length: -%d",
    b"Content-Length: %d ",
    b"Content-Length: 99999999999999999999%d",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\r\n chunked",
    b'Transfer-Encoding: "chunked"',
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X\x00: y",
    b"X: \x00",
    b"X: a\rb",
    b": empty",
    b"nocolon",
    b"X: y\nTransfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: keep-alive, Content-Length",
    b"Connection: Upgrade\r\nUpgrade: h2c",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
    b"Expect: 100-continue",
    b"Expect: 100-continue, 200-ok",
    b"Host: evil.example",
    b"Content-Encoding: gzip",
)
COMMON = b"Host: localhost\r\nContent-Type: application/json\r\n"


def make_case(dice: random.Random, name: str) -> tuple[bytes, bytes]:
    """Return one to three requests, most of them odd, and the proper one that shows where the last of them ended.

    The first part is a request of which the answer is to be on its way when the rest is sent; most cases have none.
    """
    opening = _streaming(name) if dice.random() < 0.15 else b""
    pieces = [_request(dice, f"{name}-{number}") for number in range(dice.choice((1, 1, 1, 2, 3)))]
    data = b"".join(pieces)
    if dice.random() < 0.15:
        data = _damage(dice, data)
    data += last_request(name)
    return (opening, data) if dice.random() < 0.5 else (b"", opening + data)


def last_request(name: str) -> bytes:
    """Return a proper request after which the connection ends."""
    return b"GET /v1/models/%s-last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % name.encode()


def _streaming(name: str) -> bytes:
    """Return a proper request whose answer takes its time: nothing that comes meanwhile may be mixed into it."""
    body = b'{"prompt":"%s","stream":true}' % name.encode()
    return b"POST /v1/completions HTTP/1.1\r\n" + COMMON + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _request(dice: random.Random, name: str) -> bytes:
    target = dice.choice(TARGETS) if dice.random() < 0.3 else TARGETS[0]
    target = target % name.encode() if b"%s" in target else target
    version = dice.choice(VERSIONS)
    end = dice.choice(LINE_ENDS)
    body = _smuggled(name) if dice.random() < 0.7 else b"{}"
    is_chunked = dice.random() < 0.5
    fields = [COMMON.rstrip(b"\r\n")] if dice.random() < 0.95 else []
    if dice.random() < 0.8:
        fields.append(b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(body))
    for _ in range(dice.choice((0, 1, 1, 2))):
        fields.append(_fill(dice, dice.choice(ODD_FIELDS), len(body)))
    if dice.random() < 0.02:
        fields += [b"X-%d: y" % number for number in range(dice.choice((99, 101, 400)))]
    dice.shuffle(fields)
    head = dice.choice(METHODS) + b" " + target + b" " + version + end
    head += b"".join(field + dice.choice(LINE_ENDS) for field in fields) + dice.choice(LINE_ENDS)
    return head + (_chunks(dice, body) if is_chunked else body)


def _smuggled(name: str) -> bytes:
    """Return a body that is a request, for whoever mistakes where the body begins or ends."""
    return b"GET /v1/models/%s-smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n" % name.encode()


def _fill(dice: random.Random, field: bytes, length: int) -> bytes:
    wrong = max(0, length + dice.choice((-1, 0, 0, 1, -5, 40)))
    count = field.count(b"%d") + field.count(b"%x")
    return field % tuple(dice.choice((length, wrong)) for _ in range(count)) if count else field


def _chunks(dice: random.Random, body: bytes) -> bytes:
    data = b""
    while body:
        size = dice.choice((1, 7, len(body), len(body)))
        piece, body = body[:size], body[size:]
        data += _chunk_size(dice, len(piece)) + dice.choice(CHUNK_EXTENSIONS) + dice.choice(LINE_ENDS)
        data += piece + dice.choice(LINE_ENDS)
    return (
        data + dice.choice((b"0", b"0", b"0", b"000", b"-0", b"0x0", b"")) + b"\r\n" + dice.choice(TRAILERS) + b"\r\n"
    )


def _chunk_size(dice: random.Random, size: int) -> bytes:
    forms = (b"%x",) * 12 + (b"%X", b"0%x", b"0x%x", b"+%x", b" %x", b"%x_", b"1000000000000000%x", b"-%x")
    return dice.choice(forms) % size


def _damage(dice: random.Random, data: bytes) -> bytes:
    """Change, lose or repeat a few bytes anywhere."""
    for _ in range(dice.randint(1, 3)):
        at, length = dice.randrange(len(data)), dice.randint(0, 4)
        data = (
            data[:at] + dice.choice((b"", b"\x00", b"\r", b"\n", b":", b" ", data[at : at + 20])) + data[at + length :]
        )
    return data or b"\r\n"
