"""The process of an embedding model: reads commands from a socket, obeys one after the other.

Started by `qwenstack.retrieval.client` as `python -m qwenstack.retrieval.worker SOCKET`, in a session of its own. It
ends when the other side closes the socket.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from qwenstack.core.embedding import EmbeddingInput, InputType
from qwenstack.core.errors import QwenStackError
from qwenstack.core.framing import FrameBuffer
from qwenstack.retrieval.wire import (
    Command,
    Embed,
    Failed,
    Load,
    LoadDecoder,
    LoadE5,
    Prepare,
    Prepared,
    Question,
    Reply,
    Vectors,
    command_decoder,
    encode_frame,
)

_READ_BYTES = 1 << 16


class EmbeddingModel(Protocol):
    """What computes, in this process."""

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], input_type: InputType, *, truncate: bool
    ) -> list[EmbeddingInput]:
        """Count each input, and with `truncate` leave out the end of those that are too long."""
        ...

    def embed(self, inputs: Sequence[EmbeddingInput]) -> np.ndarray:
        """Return the vectors of inputs of one type that were found to fit, `[B, D]` float32."""
        ...


def main(socket_fd: int) -> None:
    """Serve a model over an inherited socket until the other side closes it."""
    connection = socket.socket(fileno=socket_fd)
    commands = _commands(connection)
    try:
        start = next(commands, None)
        if start is None:
            return
        assert isinstance(start, LoadE5 | LoadDecoder), "the first command names the model"
        loaded = _load(start)
        for command in commands:
            assert isinstance(command, Prepare | Embed), "the model is loaded once"
            reply = Failed(command.number, loaded) if isinstance(loaded, str) else _obey(loaded, command)
            connection.sendall(encode_frame(reply))
            if isinstance(reply, Failed):
                return
    except ConnectionError:
        return


def _commands(connection: socket.socket) -> Iterator[Command]:
    buffer = FrameBuffer()
    while data := connection.recv(_READ_BYTES):
        for body in buffer.feed(data):
            yield command_decoder.decode(body)


def _load(command: Load) -> EmbeddingModel | str:
    """Return the model, or why there is none. What one of them needs is not imported for the other."""
    try:
        match command:
            case LoadE5(num_threads):
                from qwenstack.retrieval.e5_model import E5Model

                return E5Model.load(num_threads)
            case LoadDecoder():
                from qwenstack.retrieval.decoder_model import DecoderModel, engine_config

                return DecoderModel.load(engine_config(command))
    except QwenStackError as error:
        return str(error)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def _obey(model: EmbeddingModel, command: Question) -> Reply:
    match command:
        case Prepare(number, inputs, input_type, truncate):
            return Prepared(number, model.prepare(inputs, input_type, truncate=truncate))
        case Embed(number, inputs):
            return Vectors(number, model.embed(inputs).tobytes())


if __name__ == "__main__":
    main(int(sys.argv[1]))
