"""What the engine and the process that checks grammars say to each other: msgspec structs over pipes, length first."""

from __future__ import annotations

import struct
from typing import BinaryIO

import msgspec

from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.token_table import TokenTable

_LENGTH = struct.Struct("<I")


class UseTable(msgspec.Struct, tag=True):
    """The vocabulary; the first message to the checker, which answers `Usable` when it is ready."""

    table: TokenTable


class Check(msgspec.Struct, tag=True):
    """Is this grammar fit for use?"""

    grammar: Grammar


class Usable(msgspec.Struct, tag=True):
    """It is: this is the grammar in Lark, and what it holds in memory when compiled."""

    lark: str = ""
    memory_bytes: int = 0


class Unusable(msgspec.Struct, tag=True):
    """It is not."""

    reason: str
    is_certain: bool = True
    """False where it only took too long: on a quieter machine it might not."""


Request = UseTable | Check
Reply = Usable | Unusable
request_decoder = msgspec.msgpack.Decoder(Request)
reply_decoder = msgspec.msgpack.Decoder(Reply)
_encoder = msgspec.msgpack.Encoder()


def write_frame(stream: BinaryIO, message: Request | Reply) -> None:
    """Write one message."""
    body = _encoder.encode(message)
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes:
    """Read one message's bytes.

    Raises:
        EOFError: the other side is gone.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return body
