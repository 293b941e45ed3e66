"""What the server and the engine process say to each other: msgspec structs, length-prefixed, over a Unix socket pair.

Nothing else passes: no pickle, no shared objects. The body of a frame (`qwenstack.core.framing`) is MessagePack.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from qwenstack.core.framing import frame
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.protocols import AdapterInfo, EngineStats, ModelCard
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.path_codec import decode_path, encode_path
from qwenstack.logs import LogConfig


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
    return frame(_encoder.encode(message))
