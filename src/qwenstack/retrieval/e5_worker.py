"""The process of the embedding model: reads commands from a socket, obeys one after the other.

Started by `qwenstack.retrieval.e5_client` as `python -m qwenstack.retrieval.e5_worker SOCKET THREADS`, in a session of
its own. It ends when the other side closes the socket.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

from qwenstack.core.framing import FrameBuffer
from qwenstack.retrieval.e5_model import E5Model
from qwenstack.retrieval.e5_wire import (
    Command,
    Embed,
    Failed,
    Prepare,
    Prepared,
    Reply,
    Vectors,
    command_decoder,
    encode_frame,
)

_READ_BYTES = 1 << 16


def main(socket_fd: int, num_threads: int) -> None:
    """Serve the model over an inherited socket until the other side closes it."""
    connection = socket.socket(fileno=socket_fd)
    try:
        model = E5Model.load(num_threads)
        failure = None
    except (ImportError, OSError, RuntimeError) as error:
        model, failure = None, f"{type(error).__name__}: {error}"
    try:
        for command in _commands(connection):
            if model is None:
                connection.sendall(encode_frame(Failed(command.number, failure or "")))
                return
            connection.sendall(encode_frame(_obey(model, command)))
    except ConnectionError:
        return


def _commands(connection: socket.socket) -> Iterator[Command]:
    buffer = FrameBuffer()
    while data := connection.recv(_READ_BYTES):
        for body in buffer.feed(data):
            yield command_decoder.decode(body)


def _obey(model: E5Model, command: Command) -> Reply:
    match command:
        case Prepare(number, texts, input_type, truncate):
            return Prepared(number, model.prepare(texts, input_type, truncate=truncate))
        case Embed(number, texts, input_type):
            return Vectors(number, model.embed(texts, input_type).tobytes())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
