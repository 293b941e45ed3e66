"""An engine in a process of its own, asked over its standard input; while others run, the system holds it still."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from qwenstack.core.errors import EngineError

_CLOSE_TIMEOUT_S = 10
_TOLD_BYTES = 1 << 16
_TELLING = re.compile(r"assert|error|abort|exception", re.IGNORECASE)
"""A line that says more of a death than the end of a stack trace does."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of the model it holds."""

    engine: str
    version: str
    weight_bytes_per_step: int | None = None
    """Where it holds the weights in another form than the file."""
    kv_bytes_per_token: int | None = None
    """Where it holds keys and values in another form than float16."""
    remark: str = ""


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """How long a batch of prompts took."""

    prefill_s: float
    """Until each answer had its first token."""
    decode_s: float
    """From then on."""
    decode_tokens: int
    """Of all answers, without the first ones."""
    cached_tokens: int | None = None
    """Prompt tokens that a cache answered for; None: the engine does not count them."""
    drafted_tokens: int | None = None
    """Tokens that were guessed; None: the engine does not count them."""
    first_token_ids: list[int] = []
    """Of each answer."""


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """How well a text was foreseen."""

    nll: float
    """Sum of -log p."""
    num_tokens: int


class Done(msgspec.Struct, frozen=True):
    """It is done."""


class _Refused(msgspec.Struct, frozen=True):
    error: str


_Reply = TypeVar("_Reply", Loaded, Timed, Scored, Done)


class PeerError(EngineError):
    """A driver refused or died; the message says why, to stand in a report."""


class DriverProcess:
    """A running driver."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Start it.

        Raises:
            PeerError: it does not start.
        """
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        except OSError as error:
            self._log.close()
            raise PeerError(f"{name} does not start: {error}.") from error
        self._is_held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, request: Mapping[str, object], reply: type[_Reply]) -> _Reply:
        """Let it run, put a request, wait for the answer, and hold it still again.

        Raises:
            PeerError: it refuses or is dead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._let_run()
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise PeerError(f"{self.name} died: {self._last_words()}")
        self._hold()
        try:
            answer = msgspec.json.decode(line, type=dict[str, object])
            if "error" in answer:
                raise PeerError(f"{self.name}: {msgspec.convert(answer, _Refused).error}")
            return msgspec.convert(answer, reply)
        except msgspec.MsgspecError as error:
            raise PeerError(f"{self.name} answered something else than was asked: {error}.") from error

    def close(self) -> None:
        """End it, by force if it does not go."""
        self._let_run()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        try:
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _hold(self) -> None:
        """Stop all its threads, so that none can spin while another engine is measured."""
        if hasattr(signal, "SIGSTOP"):
            self._process.send_signal(signal.SIGSTOP)
            self._is_held = True

    def _let_run(self) -> None:
        if self._is_held:
            self._process.send_signal(signal.SIGCONT)
            self._is_held = False

    def _last_words(self) -> str:
        exit_code = self._process.wait()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - _TOLD_BYTES, 0))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        telling = [line for line in lines if _TELLING.search(line)] or lines
        return f"exit code {exit_code}" + (f", {telling[-1].strip()}" if telling else "")
