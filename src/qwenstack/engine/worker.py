"""The engine process: reads commands from a socket, steps the engine, writes what comes out.

Started by `qwenstack.engine.client` as `python -m qwenstack.engine.worker FD`, in a session of its own. It ends when
the other side closes the socket.
"""

from __future__ import annotations

import select
import socket
import sys
from collections import deque

from qwenstack.core.errors import CapacityError, QwenStackError, RequestError
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.engine import Engine
from qwenstack.engine.loading import load_model
from qwenstack.engine.wire import (
    Abort,
    AskStats,
    Command,
    Deltas,
    Event,
    FrameBuffer,
    LoadFailed,
    Ready,
    Refused,
    Start,
    StatsReply,
    Submit,
    command_decoder,
    encode_frame,
)

_READ_BYTES = 1 << 16


class Channel:
    """The worker's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connected socket."""
        self._socket = connection
        self._buffer = FrameBuffer()
        self._commands: deque[Command] = deque()

    def receive(self, *, wait: bool) -> Command | None:
        """Return the next command; None if there is none yet and `wait` is false.

        Raises:
            EOFError: the other side is gone.
        """
        while not self._commands:
            readable, _, _ = select.select([self._socket], [], [], None if wait else 0)
            if not readable:
                return None
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise EOFError
            self._commands.extend(command_decoder.decode(body) for body in self._buffer.feed(data))
        return self._commands.popleft()

    def send(self, event: Event) -> None:
        """Write an event; waits while the other side is busy reading."""
        self._socket.sendall(encode_frame(event))


def main(fd: int) -> None:
    """Serve one engine over an inherited socket until the other side closes it."""
    channel = Channel(socket.socket(fileno=fd))
    try:
        start = channel.receive(wait=True)
        assert isinstance(start, Start), "the first command names the model"
        engine = _load(start.config, channel)
        if engine is not None:
            _serve(engine, channel)
    except (EOFError, ConnectionError):
        return


def _load(config: EngineConfig, channel: Channel) -> Engine | None:
    try:
        engine = Engine(load_model(config))
    except QwenStackError as error:
        channel.send(LoadFailed(error_type=type(error).__name__, message=str(error)))
        return None
    except Exception as error:  # noqa: BLE001 - the one who waits must hear it, whatever it was
        channel.send(LoadFailed(error_type="EngineError", message=f"{type(error).__name__}: {error}"))
        return None
    channel.send(Ready(card=engine.model.card))
    return engine


def _serve(engine: Engine, channel: Channel) -> None:
    while True:
        if not engine.has_work:
            engine.check_integrity()
        command = channel.receive(wait=not engine.has_work)
        while command is not None:
            _obey(command, engine, channel)
            command = channel.receive(wait=False)
        if engine.has_work:
            channel.send(Deltas(deltas=engine.step(), stats=engine.stats()))


def _obey(command: Command, engine: Engine, channel: Channel) -> None:
    match command:
        case Submit(request_id, prompt_token_ids, params):
            try:
                engine.add_request(request_id, prompt_token_ids, params)
            except RequestError as error:
                channel.send(Refused(request_id, type(error).__name__, str(error), error.param, error.code))
            except CapacityError as error:
                channel.send(Refused(request_id, type(error).__name__, str(error)))
        case Abort(request_id):
            engine.abort(request_id)
        case AskStats():
            channel.send(StatsReply(stats=engine.stats()))
        case Start():
            raise AssertionError("the model is loaded once")


if __name__ == "__main__":
    main(int(sys.argv[1]))
