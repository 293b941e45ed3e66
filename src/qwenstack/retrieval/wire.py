"""What the server and the process of an embedding model say to each other, over a Unix socket pair.

Frames (`qwenstack.core.framing`) with a body in MessagePack, strictly in turn: a command, its reply.
"""

from __future__ import annotations

import msgspec

from qwenstack.core.embedding import EmbeddingInput, InputType
from qwenstack.core.framing import frame


class LoadE5(msgspec.Struct, tag=True):
    """Be multilingual-e5-small; the first command, or `LoadDecoder` is."""

    num_threads: int


class LoadDecoder(msgspec.Struct, tag=True):
    """Be this model, which embeds by its last token; as `embedders.decoder_embedder`."""

    path: str
    name: str
    num_threads: int | None
    max_tokens: int | None


class Prepare(msgspec.Struct, tag=True):
    """Count texts, and with `truncate` cut those that are too long; answered with `Prepared`."""

    number: int
    """Which command this is: a reply repeats it, so that one nobody waits for any more is told from the next."""
    inputs: list[str | tuple[int, ...]]
    input_type: InputType
    truncate: bool


class Embed(msgspec.Struct, tag=True):
    """Embed inputs of one type that were prepared; answered with `Vectors`."""

    number: int
    inputs: list[EmbeddingInput]


class Prepared(msgspec.Struct, tag=True):
    """The inputs as the model reads them."""

    number: int
    inputs: list[EmbeddingInput]


class Vectors(msgspec.Struct, tag=True):
    """One row of float32 for each input, one after the other."""

    number: int
    rows: bytes


class Failed(msgspec.Struct, tag=True):
    """The model cannot be loaded; answers the command after `Load…`, and the process ends."""

    number: int
    message: str


Load = LoadE5 | LoadDecoder
Question = Prepare | Embed
Command = Load | Question
Reply = Prepared | Vectors | Failed

_encoder = msgspec.msgpack.Encoder()
command_decoder = msgspec.msgpack.Decoder(Command)
reply_decoder = msgspec.msgpack.Decoder(Reply)


def encode_frame(message: Command | Reply) -> bytes:
    """Return a message as bytes for the socket."""
    return frame(_encoder.encode(message))
