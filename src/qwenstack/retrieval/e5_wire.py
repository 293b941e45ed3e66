"""What the server and the process of the embedding model say to each other, over a Unix socket pair.

Frames (`qwenstack.core.framing`) with a body in MessagePack, strictly in turn: a command, its reply.
"""

from __future__ import annotations

import msgspec

from qwenstack.core.embedding import EmbeddingInput, InputType
from qwenstack.core.framing import frame


class Prepare(msgspec.Struct, tag=True):
    """Count texts, and with `truncate` cut those that are too long; answered with `Prepared`."""

    number: int
    """Which command this is: a reply repeats it, so that one nobody waits for any more is told from the next."""
    texts: list[str]
    input_type: InputType
    truncate: bool


class Embed(msgspec.Struct, tag=True):
    """Embed texts that were prepared; answered with `Vectors`."""

    number: int
    texts: list[str]
    input_type: InputType


class Prepared(msgspec.Struct, tag=True):
    """The texts as the model reads them."""

    number: int
    inputs: list[EmbeddingInput]


class Vectors(msgspec.Struct, tag=True):
    """One row of float32 for each text, one after the other."""

    number: int
    rows: bytes


class Failed(msgspec.Struct, tag=True):
    """The model cannot be loaded; the process ends."""

    number: int
    message: str


Command = Prepare | Embed
Reply = Prepared | Vectors | Failed

_encoder = msgspec.msgpack.Encoder()
command_decoder = msgspec.msgpack.Decoder(Command)
reply_decoder = msgspec.msgpack.Decoder(Reply)


def encode_frame(message: Command | Reply) -> bytes:
    """Return a message as bytes for the socket."""
    return frame(_encoder.encode(message))
