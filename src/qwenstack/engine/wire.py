"""What the server and the engine process say to each other: msgspec structs, length-prefixed, over a Unix socket pair.

Nothing else passes: no pickle, no shared objects. A frame is four bytes of length, little endian, and a body in
MessagePack.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from qwenstack.core.errors import EngineError
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.protocols import AdapterInfo, EngineStats, ModelCard
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.path_codec import decode_path, encode_path
from qwenstack.logs import LogConfig

MAX_FRAME_BYTES = 64 << 20
"""Above what any step sends, scored prompts included; a longer frame means that the stream is broken."""
_LENGTH = struct.Struct("<I")


class Start(msgspec.Struct, tag=True):
    """Load this model; the first command."""

    config: EngineConfig
    logs: LogConfig = LogConfig()


class Submit(msgspec.Struct, tag=True):
    """Queue a request."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    options: RequestOptions = RequestOptions()


class Abort(msgspec.Struct, tag=True):
    """Forget a request, in whatever state it is."""

    request_id: str


class AskStats(msgspec.Struct, tag=True):
    """Answer with a `StatsReply`."""


class LoadAdapter(msgspec.Struct, tag=True):
    """Load a LoRA adapter; answered with `Adapters` or `AdapterRefused`."""

    name: str
    path: Path


class UnloadAdapter(msgspec.Struct, tag=True):
    """Forget a LoRA adapter; answered with `Adapters` or `AdapterRefused`."""

    name: str


class ListAdapters(msgspec.Struct, tag=True):
    """Answer with `Adapters`."""


class Ready(msgspec.Struct, tag=True):
    """The model is loaded."""

    card: ModelCard


class LoadFailed(msgspec.Struct, tag=True):
    """The model cannot be loaded; the process ends."""

    error_type: str
    """The class of `qwenstack.core.errors` it was."""
    message: str


class Deltas(msgspec.Struct, tag=True):
    """What one step gave, and how the engine stands; one after every step, also when it only read a prompt."""

    deltas: list[OutputDelta]
    stats: EngineStats


class Refused(msgspec.Struct, tag=True):
    """A request was not queued."""

    request_id: str
    error_type: str
    message: str
    param: str | None = None
    code: str | None = None


class StatsReply(msgspec.Struct, tag=True):
    """The engine's counters."""

    stats: EngineStats


class Adapters(msgspec.Struct, tag=True):
    """The adapters that are loaded, after the command that this answers."""

    adapters: list[AdapterInfo]


class AdapterRefused(msgspec.Struct, tag=True):
    """A command about adapters changed nothing."""

    error_type: str
    message: str
    param: str | None = None
    code: str | None = None


AdapterCommand = LoadAdapter | UnloadAdapter | ListAdapters
Command = Start | Submit | Abort | AskStats | AdapterCommand
Event = Ready | LoadFailed | Deltas | Refused | StatsReply | Adapters | AdapterRefused


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_path)
command_decoder = msgspec.msgpack.Decoder(Command, dec_hook=decode_path)
event_decoder = msgspec.msgpack.Decoder(Event, dec_hook=decode_path)


def encode_frame(message: Command | Event) -> bytes:
    """Return a message as bytes for the socket."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Cuts a stream of bytes into message bodies, however the bytes arrive."""

    def __init__(self) -> None:
        """Start empty."""
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; return the bodies that are complete now.

        Raises:
            EngineError: a frame claims to be longer than any message can be.
        """
        self._bytes += data
        bodies: list[bytes] = []
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            if length > MAX_FRAME_BYTES:
                raise EngineError(
                    f"A frame of {length} bytes came over the engine's socket; the limit is {MAX_FRAME_BYTES}."
                )
            if len(self._bytes) - start - _LENGTH.size < length:
                break
            start += _LENGTH.size
            bodies.append(bytes(self._bytes[start : start + length]))
            start += length
        del self._bytes[:start]
        return bodies
