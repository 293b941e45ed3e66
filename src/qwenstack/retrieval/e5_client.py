"""The server's end of the embedding model's process: started when first needed, and again when it died.

Commands go strictly in turn. A request is computed in small batches, and each batch waits for its turn anew: a long
list holds up others for the length of one batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count

from qwenstack.core.embedding import EmbeddingInput, InputType, Vector
from qwenstack.core.errors import EngineError, RequestError
from qwenstack.core.framing import FrameBuffer
from qwenstack.core.protocols import EmbedderCard
from qwenstack.core.worker_process import cause_of_death, spawn_worker, stop_worker
from qwenstack.retrieval.e5_limits import DIMENSIONS, MAX_TOKENS, NUM_PARAMETERS
from qwenstack.retrieval.e5_wire import (
    Command,
    Embed,
    Failed,
    Prepare,
    Prepared,
    Reply,
    Vectors,
    encode_frame,
    reply_decoder,
)

logger = logging.getLogger(__name__)

E5_NAME = "multilingual-e5-small"

_WORKER_MODULE = "qwenstack.retrieval.e5_worker"
_READ_BYTES = 1 << 16
_BATCH_TOKENS = 512
_BATCH_TEXTS = 16
"""About 1.5 s of one thread. Larger ones are not faster: `python benches/embeddings.py`."""
_COUNTED_CHARS = 1 << 16
"""Counted at a time, in at most a tenth of a second."""
_REPLY_TIMEOUT_S = 60.0
"""Far more than a batch, or a body's text counted, takes on a busy machine."""
_PREFIXES: dict[str, InputType] = {"query: ": "query", "passage: ": "passage"}


class E5Embedder:
    """multilingual-e5-small in a process of its own; implements `qwenstack.core.protocols.Embedder`."""

    def __init__(self, *, num_threads: int = 1) -> None:
        """Start nothing yet: the first request does, which takes half a second longer for it."""
        self.card = EmbedderCard(
            id=E5_NAME,
            created=int(time.time()),
            dimensions=DIMENSIONS,
            min_dimensions=DIMENSIONS,
            max_tokens=MAX_TOKENS,
            # The model card: "query: " for everything but the passages that are searched.
            input_types=("query", "passage"),
            takes_token_ids=False,
            num_parameters=NUM_PARAMETERS,
            weight_format="Q4_0",
        )
        self._num_threads = num_threads
        self._turn = asyncio.Lock()
        self._worker: _Worker | None = None
        self._is_closed = False
        self._numbers = count()

    @property
    def pid(self) -> int | None:
        """The process id of the model; None while none runs."""
        return None if self._worker is None else self._worker.process.pid

    async def prepare(
        self, inputs: Sequence[str | Sequence[int]], *, input_type: InputType | None = None, truncate: bool = False
    ) -> list[EmbeddingInput]:
        """Count texts; where no type is given, one that begins with `query: ` or `passage: ` says so itself."""
        texts = [_read_input(given, index, input_type) for index, given in enumerate(inputs)]
        prepared: list[EmbeddingInput] = []
        for kind, batch in _runs(texts):
            reply = await self._ask(Prepare(next(self._numbers), batch, kind, truncate))
            assert isinstance(reply, Prepared), "the reply to Prepare"
            prepared.extend(reply.inputs)
        return prepared

    async def embed(self, inputs: Sequence[EmbeddingInput]) -> list[Vector]:
        """Return the vector of each input."""
        vectors: list[Vector] = []
        for batch in _batches(inputs):
            texts = [each.content for each in batch if isinstance(each.content, str)]
            assert len(texts) == len(batch), "this model is given texts"
            reply = await self._ask(Embed(next(self._numbers), texts, batch[0].input_type))
            assert not isinstance(reply, Prepared), "the reply to Embed"
            vectors.extend(_rows(reply.rows))
        return vectors

    async def close(self) -> None:
        """End the process for good; requests that wait for it end with an `EngineError`."""
        self._is_closed = True
        await self._drop_worker()

    async def _ask(self, command: Command) -> Prepared | Vectors:
        """Send a command when it is its turn, and return the reply.

        Raises:
            EngineError: the process died, does not answer, or cannot load the model; the next command starts another.
        """
        async with self._turn:
            worker = await self._running()
            try:
                async with asyncio.timeout(_REPLY_TIMEOUT_S):
                    reply = await worker.ask(command)
            except (TimeoutError, EOFError, OSError) as error:
                await self._drop_worker()
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
            self._worker = await _Worker.start(self._num_threads)
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

    @classmethod
    async def start(cls, num_threads: int) -> _Worker:
        # Its threads sleep while they wait: spinning, as OpenMP does, would take cores from the engine.
        environment = {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "passive"}
        return cls(*await spawn_worker(_WORKER_MODULE, arguments=[str(num_threads)], environment=environment))

    @property
    def cause_of_death(self) -> str:
        return cause_of_death(self.process)

    async def ask(self, command: Command) -> Reply:
        """Send a command and wait for its reply; those to commands that were cancelled are passed over.

        Raises:
            EOFError: the process is gone.
        """
        self._writer.write(encode_frame(command))
        await self._writer.drain()
        while True:
            while not self._bodies:
                data = await self._reader.read(_READ_BYTES)
                if not data:
                    raise EOFError
                self._bodies.extend(self._buffer.feed(data))
            reply = reply_decoder.decode(self._bodies.popleft())
            if reply.number == command.number:
                return reply

    async def stop(self) -> None:
        await stop_worker(self.process, self._writer)


def _read_input(given: str | Sequence[int], index: int, input_type: InputType | None) -> tuple[InputType, str]:
    """Return what a text is and the text without the prefix that said so."""
    if not isinstance(given, str):
        text = f"`input[{index}]` is token ids; {E5_NAME} has another vocabulary than your tokenizer. Send the text."
        raise RequestError(text, param="input", code="invalid_value")
    kind, content = input_type, given
    for prefix, named in _PREFIXES.items():
        if kind is None and given.startswith(prefix):
            kind, content = named, given.removeprefix(prefix)
    if not content or "\0" in content or any("\ud800" <= sign <= "\udfff" for sign in content):
        trouble = "has a NUL character or half a surrogate pair" if content else "is empty"
        raise RequestError(f"`input[{index}]` {trouble}; send text.", param="input", code="invalid_value")
    return kind or "query", content


def _runs(texts: Sequence[tuple[InputType, str]]) -> Iterator[tuple[InputType, list[str]]]:
    """Yield runs of texts of one type that are counted together, in order."""
    run: list[str] = []
    num_chars = 0
    for index, (kind, text) in enumerate(texts):
        run.append(text)
        num_chars += len(text)
        is_last = index + 1 == len(texts) or texts[index + 1][0] != kind
        if is_last or num_chars >= _COUNTED_CHARS:
            yield kind, run
            run, num_chars = [], 0


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


def _rows(data: bytes) -> Iterator[Vector]:
    """Cut rows of float32 apart."""
    numbers = array("f", data)
    for start in range(0, len(numbers), DIMENSIONS):
        yield numbers[start : start + DIMENSIONS]
