"""The server's end of the engine process: starts it, watches it, starts it again when it dies.

Requests that were running when it died end with an `EngineError`; later ones are refused until it is back. Those that
it was computing at that moment are suspects (`qwenstack.engine.quarantine`).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import time
from asyncio import Future
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from qwenstack.core import errors
from qwenstack.core.errors import EngineError, EngineRestartingError, QwenStackError, RequestError
from qwenstack.core.framing import FrameBuffer
from qwenstack.core.infill import Gap, InfillPrompt
from qwenstack.core.messages import Message
from qwenstack.core.outputs import OutputDelta, raise_if_failed
from qwenstack.core.protocols import AdapterInfo, EngineStats, ModelCard
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.core.worker_process import cause_of_death, spawn_worker, stop_worker
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.flight_recorder import FlightRecorder, shared_memory
from qwenstack.engine.loading import default_sampling, load_tokenizer
from qwenstack.engine.quarantine import Quarantine, request_digest
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
    encode_frame,
    event_decoder,
)
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.logs import LogConfig
from qwenstack.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_WORKER_MODULE = "qwenstack.engine.worker"
_FIRST_RESTART_DELAY_S = 0.2
_LAST_RESTART_DELAY_S = 10.0
_STEP_TIMEOUT_S = 60.0
"""An engine that is silent for longer is not well: a step of a large model on few cores takes seconds, not this."""
_MAX_GIVEN_UP = 1024
"""A step ends and obeys the aborts that came meanwhile; no more readers than this leave during one."""

_Update = OutputDelta | QwenStackError
ResultT = TypeVar("ResultT")


class EngineClient:
    """A model in a process of its own; implements `qwenstack.core.protocols.AsyncLLM`."""

    def __init__(
        self,
        config: EngineConfig,
        process: _EngineProcess,
        card: ModelCard,
        tokenizer: Tokenizer,
        sampling: Mapping[str, float | int],
        *,
        logs: LogConfig = LogConfig(),
    ) -> None:
        """Take over a process that is ready; `EngineClient.start` makes one."""
        self._config = config
        self._logs = logs
        self._process: _EngineProcess | None = process
        self._card = card
        self._tokenizer = tokenizer
        self.default_sampling = sampling
        """Sampling that the model's makers recommend, by the names of `SamplingParams`."""
        self._quarantine = Quarantine()
        # Threads of their own: whatever else waits in the loop's, prompts are read.
        self._text_threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="text")
        self._adapters = {source.name: source.path for source in config.adapter_sources}
        """Those that requests may name; a process that is started again gets the same."""
        self._supervisor = asyncio.create_task(self._keep_alive(process))

    @classmethod
    async def start(cls, config: EngineConfig, *, logs: LogConfig = LogConfig()) -> EngineClient:
        """Start the engine process, which logs as `logs` says, and wait until its model is loaded.

        Raises:
            CheckpointError: the model is missing, damaged or of a kind that is not read here.
            CapacityError: it does not fit into memory.
            ConfigError: a setting does not suit the machine or the model.
            EngineError: the process died.
        """
        started, text_side = await asyncio.gather(
            _EngineProcess.start(config, logs), asyncio.to_thread(_read_text_side, config), return_exceptions=True
        )
        if isinstance(started, BaseException):
            raise started
        process, card = started
        if isinstance(text_side, BaseException):
            await process.stop()
            raise text_side
        return cls(config, process, card, *text_side, logs=logs)

    @property
    def card(self) -> ModelCard:
        """What is served."""
        return self._card

    @property
    def adapter_names(self) -> Sequence[str]:
        """LoRA adapters that requests may name."""
        return tuple(self._adapters)

    @property
    def pid(self) -> int | None:
        """The engine's process id; None while it is being started again."""
        return None if self._process is None else self._process.pid

    def encode(self, text: str) -> Future[list[int]]:
        """Turn plain text into token ids."""
        return self._work_on_text(partial(self._tokenizer.encode, text))

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
    ) -> Future[list[int]]:
        """Turn a conversation into the model's prompt."""
        encode = partial(self._tokenizer.encode_chat, messages, tools=tools, enable_thinking=enable_thinking)
        return self._work_on_text(encode)

    def encode_infill(self, gap: Gap, *, max_tokens: int) -> Future[InfillPrompt]:
        """Turn a gap in a file into the model's prompt."""
        return self._work_on_text(partial(self._tokenizer.encode_infill, gap, max_tokens=max_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of a token."""
        return self._tokenizer.token_bytes(token_id)

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = RequestOptions(),
    ) -> AsyncGenerator[OutputDelta]:
        """Yield what each step adds; closing the generator cancels the request."""
        request = Submit(request_id, list(prompt_token_ids), params, options)
        digest = request_digest(request)
        async with self._quarantine.admit(digest), contextlib.aclosing(self._run(request, digest)) as deltas:
            async for delta in deltas:
                yield delta
        self._quarantine.acquit(digest)

    async def _run(self, request: Submit, digest: str) -> AsyncGenerator[OutputDelta]:
        process = self._running_process()
        updates = process.submit(request, digest)
        num_open = request.params.n
        try:
            while num_open:
                update = await updates.get()
                if isinstance(update, QwenStackError):
                    num_open = 0
                    raise update
                num_open -= update.finish_reason is not None
                raise_if_failed(update)
                yield update
        finally:
            process.forget(request.request_id, abort=num_open > 0)

    async def stats(self) -> EngineStats:
        """Return the engine's counters."""
        return await self._running_process().ask_stats()

    async def load_adapter(self, name: str, path: Path) -> list[AdapterInfo]:
        """Load a LoRA adapter, also into the engine processes to come, and return all that are loaded now.

        Raises:
            QwenStackError: it cannot be read, or does not fit the model; all is as before.
            EngineError: the engine does not run.
        """
        adapters = await self._running_process().ask_adapters(LoadAdapter(name, path))
        self._adapters[name] = path
        return adapters

    async def unload_adapter(self, name: str) -> list[AdapterInfo]:
        """Forget a LoRA adapter and return those that are left.

        Raises:
            RequestError: there is none of that name.
            EngineError: the engine does not run.
        """
        adapters = await self._running_process().ask_adapters(UnloadAdapter(name))
        self._adapters.pop(name, None)
        return adapters

    async def list_adapters(self) -> list[AdapterInfo]:
        """Return the LoRA adapters that requests may name.

        Raises:
            EngineError: the engine does not run.
        """
        return await self._running_process().ask_adapters(ListAdapters())

    async def close(self) -> None:
        """Stop the engine process; running requests end with an `EngineError`."""
        self._supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._supervisor
        if self._process is not None:
            await self._process.stop()
        self._text_threads.shutdown(wait=False, cancel_futures=True)

    def _work_on_text(self, work: Callable[[], ResultT]) -> Future[ResultT]:
        """Tokenise beside the event loop."""
        in_context = partial(contextvars.copy_context().run, work)
        return asyncio.get_running_loop().run_in_executor(self._text_threads, in_context)

    def _running_process(self) -> _EngineProcess:
        if self._process is None:
            raise EngineRestartingError("The engine is being started again; try again in a moment.")
        return self._process

    async def _keep_alive(self, process: _EngineProcess) -> None:
        """Start the process again whenever it dies."""
        while True:
            await process.wait_until_dead()
            self._process = None
            self._quarantine.blame(process.fatal_digests)
            await process.stop()
            logger.error("The engine process died (%s); starting it again.", process.cause_of_death)
            process = self._process = await self._start_again()
            logger.warning("The engine is ready again.")

    async def _start_again(self) -> _EngineProcess:
        """Try until the process is ready, waiting longer each time it does not come up."""
        delay_s = _FIRST_RESTART_DELAY_S
        while True:
            await asyncio.sleep(delay_s)
            process = None
            try:
                process, self._card = await _EngineProcess.start(self._config, self._logs)
                await self._load_adapters_again(process)
                return process
            except (QwenStackError, OSError) as error:
                if process is not None:
                    await process.stop()
                logger.error("The engine did not start: %s", error)
                delay_s = min(2 * delay_s, _LAST_RESTART_DELAY_S)

    async def _load_adapters_again(self, process: _EngineProcess) -> None:
        """Give a new process the adapters of the one before; what cannot be had is reported and left out."""
        configured = {source.name: source.path for source in self._config.adapter_sources}
        for name in configured.keys() - self._adapters.keys():
            await process.ask_adapters(UnloadAdapter(name))
        for name, path in list(self._adapters.items()):
            if configured.get(name) == path:
                continue
            try:
                await process.ask_adapters(LoadAdapter(name, path))
            except EngineError:
                raise  # the process, not the adapter
            except QwenStackError as error:
                logger.error("The adapter %r was not loaded again: %s", name, error)
                del self._adapters[name]


class _EngineProcess(asyncio.Protocol):
    """One life of the worker, at our end of its socket.

    Events are told in the turn of the loop in which they come: behind a stream and a task that reads it, beside a crowd
    of requests, each turn is a millisecond later.
    """

    def __init__(self, process: asyncio.subprocess.Process, recorder: FlightRecorder) -> None:
        self.pid = process.pid
        self.fatal_digests: frozenset[str] = frozenset()
        """After the process's death: the requests that it was computing then."""
        self._recorder = recorder
        self._digests: dict[str, str] = {}
        """Of the requests that run, and of those given up lately, which the process may still be computing."""
        self._given_up: deque[str] = deque()
        self._process = process
        self._buffer = FrameBuffer()
        self._updates: dict[str, asyncio.Queue[_Update]] = {}
        self._stats_waiters: deque[asyncio.Future[EngineStats]] = deque()
        self._adapter_waiters: deque[asyncio.Future[list[AdapterInfo]]] = deque()
        self._last_stats: EngineStats | None = None
        self._last_heard_s = time.monotonic()
        self._ready: asyncio.Future[ModelCard] = asyncio.get_running_loop().create_future()
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, config: EngineConfig, logs: LogConfig) -> tuple[_EngineProcess, ModelCard]:
        """Start a worker and wait until its model is loaded; a worker that does not get there is gone afterwards.

        Raises:
            QwenStackError: as `EngineClient.start`.
        """
        process = await cls._spawn()
        try:
            return process, await process.load(config, logs)
        except BaseException:
            await process.stop()
            raise

    @classmethod
    async def _spawn(cls) -> _EngineProcess:
        with shared_memory() as memory_fd:
            recorder = FlightRecorder(memory_fd)
            process, sock = await spawn_worker(_WORKER_MODULE, pass_fds=[memory_fd])
        loop = asyncio.get_running_loop()
        _, engine = await loop.create_unix_connection(lambda: cls(process, recorder), sock=sock)
        return engine

    @property
    def cause_of_death(self) -> str:
        """What the system says of a process that was stopped."""
        return cause_of_death(self._process)

    async def load(self, config: EngineConfig, logs: LogConfig) -> ModelCard:
        self._send(Start(config, logs))
        return await asyncio.shield(self._ready)

    async def wait_until_dead(self) -> None:
        await asyncio.wait([self._gone])

    def submit(self, command: Submit, digest: str) -> asyncio.Queue[_Update]:
        """Queue a request; the result is at most as long as the answer, since the engine owns its length."""
        if command.request_id in self._updates:
            raise RequestError(f"A request {command.request_id!r} is running already.", code="duplicate_request")
        if self._gone.done():
            raise EngineRestartingError("The engine stopped; it is being started again. Try again in a moment.")
        updates: asyncio.Queue[_Update] = asyncio.Queue()
        self._updates[command.request_id] = updates
        self._digests[command.request_id] = digest
        self._send(command)
        return updates

    def forget(self, request_id: str, *, abort: bool) -> None:
        self._updates.pop(request_id, None)
        if not abort:
            self._digests.pop(request_id, None)
            return
        self._given_up.append(request_id)
        if len(self._given_up) > _MAX_GIVEN_UP:
            self._digests.pop(self._given_up.popleft(), None)
        self._send(Abort(request_id))

    async def ask_stats(self) -> EngineStats:
        """Return the last step's counters while the engine works, fresh ones while it is idle."""
        if self._gone.done():
            raise EngineRestartingError("The engine stopped; it is being started again. Try again in a moment.")
        is_silent = time.monotonic() - self._last_heard_s > _STEP_TIMEOUT_S
        if self._updates and self._last_stats is not None and not is_silent:
            return self._last_stats
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._send(AskStats())
        try:
            return await asyncio.wait_for(waiter, _STEP_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineError(f"The engine did not answer within {_STEP_TIMEOUT_S:g} s.") from error

    async def ask_adapters(self, command: AdapterCommand) -> list[AdapterInfo]:
        """Send a command about adapters; answers come in the order of the commands."""
        if self._gone.done():
            raise EngineRestartingError("The engine stopped; it is being started again. Try again in a moment.")
        waiter: asyncio.Future[list[AdapterInfo]] = asyncio.get_running_loop().create_future()
        self._adapter_waiters.append(waiter)
        self._send(command)
        return await waiter

    async def stop(self) -> None:
        await stop_worker(self._process, self._transport)
        self._transport.abort()  # what it never read goes with it
        await self.wait_until_dead()
        self._ready.cancel()
        self._recorder.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]: as uvicorn's
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for body in self._buffer.feed(data):
            self._dispatch(event_decoder.decode(body))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the process's end says more
        fatal_ids = self._recorder.read()
        suspects = self._updates if fatal_ids is None else fatal_ids
        self.fatal_digests = frozenset(self._digests[name] for name in suspects if name in self._digests)
        text = "The engine stopped while it worked on this; it is being started again. Try again."
        self._fail_all(EngineRestartingError(text))
        self._gone.set_result(None)

    def _send(self, command: Command) -> None:
        if not self._transport.is_closing():
            self._transport.write(encode_frame(command))

    def _dispatch(self, event: Event) -> None:
        self._last_heard_s = time.monotonic()
        match event:
            case Deltas(deltas, stats):
                self._last_stats = stats
                for delta in deltas:
                    self._deliver(delta.request_id, delta)
            case Refused(request_id, error_type, message, param, code):
                self._deliver(request_id, _as_error(error_type, message, param, code))
            case StatsReply(stats):
                waiter = self._stats_waiters.popleft()
                if not waiter.done():
                    waiter.set_result(stats)
            case Adapters(adapters):
                waiter = self._adapter_waiters.popleft()
                if not waiter.done():
                    waiter.set_result(adapters)
            case AdapterRefused(error_type, message, param, code):
                waiter = self._adapter_waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(_as_error(error_type, message, param, code))
            case Ready(card):
                self._ready.set_result(card)
            case LoadFailed(error_type, message):
                self._ready.set_exception(_as_error(error_type, message, None, None))

    def _deliver(self, request_id: str, update: _Update) -> None:
        updates = self._updates.get(request_id)
        if updates is not None:
            updates.put_nowait(update)

    def _fail_all(self, error: EngineError) -> None:
        for updates in self._updates.values():
            updates.put_nowait(error)
        for waiter in (*self._stats_waiters, *self._adapter_waiters):
            if not waiter.done():
                waiter.set_exception(error)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # whoever waits gets it; nobody has to


def _as_error(error_type: str, message: str, param: str | None, code: str | None) -> QwenStackError:
    """Make the error again that the other process caught."""
    if error_type == RequestError.__name__:
        return RequestError(message, param=param, code=code)
    kind = getattr(errors, error_type, EngineError)
    if not (isinstance(kind, type) and issubclass(kind, QwenStackError)):
        kind = EngineError
    return kind(message)


def _read_text_side(config: EngineConfig) -> tuple[Tokenizer, Mapping[str, float | int]]:
    checkpoint = open_checkpoint(config.model_path)
    return load_tokenizer(checkpoint), default_sampling(checkpoint)
