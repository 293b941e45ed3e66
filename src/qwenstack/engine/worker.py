"""The engine process: reads commands from a socket, steps the engine, writes what comes out.

Started by `qwenstack.engine.client` as `python -m qwenstack.engine.worker SOCKET MEMORY`, two inherited descriptors, in
a session of its own. It ends when the other side closes the socket.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import sys
from collections import deque
from typing import assert_never

from qwenstack.core.errors import CapacityError, EngineError, QwenStackError, RequestError
from qwenstack.core.framing import FrameBuffer
from qwenstack.core.heap import keep_what_is_here
from qwenstack.engine.building import build_engine
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.engine import Engine
from qwenstack.engine.flight_recorder import FlightRecorder
from qwenstack.engine.wire import (
    Abort,
    AdapterCommand,
    AdapterRefused,
    Adapters,
    AskStats,
    Command,
    Deltas,
    Event,
    ListAdapters,
    LoadAdapter,
    LoadFailed,
    Ready,
    Refused,
    Start,
    StatsReply,
    Submit,
    UnloadAdapter,
    command_decoder,
    encode_frame,
)
from qwenstack.logs import logging_to

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
_COMMANDS_A_STEP = 32
"""To take in a prompt of 32,000 tokens takes about 10 ms; 32 short ones take less than one."""
_EXIT_DAMAGED = 70
"""`EX_SOFTWARE` of sysexits.h: the engine's own books do not agree."""


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


def main(socket_fd: int, memory_fd: int) -> None:
    """Serve one engine over an inherited socket until the other side closes it."""
    channel = Channel(socket.socket(fileno=socket_fd))
    recorder = FlightRecorder(memory_fd)
    try:
        start = channel.receive(wait=True)
        assert isinstance(start, Start), "the first command names the model"
        with logging_to(config=start.logs):
            worker = _load(start.config, channel, recorder)
            if worker is not None:
                with contextlib.closing(worker):
                    worker.serve()
    except (EOFError, ConnectionError):
        return


def _load(config: EngineConfig, channel: Channel, recorder: FlightRecorder) -> Worker | None:
    try:
        engine = build_engine(config, recorder=recorder)
    except QwenStackError as error:
        channel.send(LoadFailed(error_type=type(error).__name__, message=str(error)))
        return None
    except Exception as error:  # noqa: BLE001 - the one who waits must hear it, whatever it was
        channel.send(LoadFailed(error_type="EngineError", message=f"{type(error).__name__}: {error}"))
        return None
    channel.send(Ready(card=engine.model.card))
    engine.warm_up()
    keep_what_is_here()
    return Worker(engine, channel, recorder)


class Worker:
    """Obeys commands between the steps of one engine."""

    def __init__(self, engine: Engine, channel: Channel, recorder: FlightRecorder) -> None:
        """Serve an engine that tells `recorder` already."""
        self._engine = engine
        self._channel = channel
        self._recorder = recorder

    def serve(self) -> None:
        """Obey and step for ever.

        Raises:
            EOFError, ConnectionError: the other side is gone.
            SystemExit: the engine is damaged.
        """
        engine, channel, recorder = self._engine, self._channel, self._recorder
        while True:
            if not engine.has_work:
                self._leave_if_damaged()
            command = channel.receive(wait=not engine.has_work)
            for _ in range(_COMMANDS_A_STEP):  # a burst of long prompts must not hold up those who stream
                if command is None:
                    break
                self._obey(command)
                command = channel.receive(wait=False)
            else:
                if command is not None:
                    self._obey(command)
            if engine.has_work:
                recorder.anyone()  # until the engine says whom it computes
                deltas = engine.step()
                recorder.nobody()
                channel.send(Deltas(deltas=deltas, stats=engine.stats()))

    def close(self) -> None:
        """Let what runs beside the engine finish."""
        self._engine.close()

    def _leave_if_damaged(self) -> None:
        """End the process where a block was lost or has two owners: the next one is clean, this one would get worse."""
        try:
            self._engine.check_integrity()
        except EngineError as error:
            logger.error("The engine is damaged and stops, to be started again: %s", error)
            sys.exit(_EXIT_DAMAGED)

    def _obey(self, command: Command) -> None:
        match command:
            case Submit():
                self._recorder.computing([command.request_id])
                self._submit(command)
                self._recorder.nobody()
            case Abort(request_id):
                self._engine.abort(request_id)
            case AskStats():
                self._channel.send(StatsReply(stats=self._engine.stats()))
            case LoadAdapter() | UnloadAdapter() | ListAdapters():
                self._change_adapters(command)
            case Start():
                raise AssertionError("the model is loaded once")
            case _:
                assert_never(command)

    def _submit(self, command: Submit) -> None:
        try:
            self._engine.add_request(command.request_id, command.prompt_token_ids, command.params, command.options)
        except RequestError as error:
            self._channel.send(Refused(command.request_id, type(error).__name__, str(error), error.param, error.code))
        except CapacityError as error:
            self._channel.send(Refused(command.request_id, type(error).__name__, str(error)))

    def _change_adapters(self, command: AdapterCommand) -> None:
        engine = self._engine
        try:
            match command:
                case LoadAdapter(name, path):
                    engine.load_adapter(name, path)
                case UnloadAdapter(name):
                    engine.unload_adapter(name)
                case ListAdapters():
                    pass
                case _:
                    assert_never(command)
        except RequestError as error:
            self._channel.send(AdapterRefused(type(error).__name__, str(error), error.param, error.code))
        except QwenStackError as error:
            self._channel.send(AdapterRefused(type(error).__name__, str(error)))
        except Exception as error:  # noqa: BLE001 - a folder that somebody wrote must not end those who stream
            self._channel.send(AdapterRefused("EngineError", f"{type(error).__name__}: {error}"))
        else:
            self._channel.send(Adapters(adapters=list(engine.adapters())))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
