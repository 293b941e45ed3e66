"""What every wire asks of the model: check a request, turn it into prompts and parameters, run it, add it up.

A wire (OpenAI's HTTP endpoints, `/qwen3/generate`, whatever comes next) translates its own words into these calls and
back; nothing here knows how a request travelled.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

from qwenstack.core.errors import ConfigError, EngineError, RequestError
from qwenstack.core.infill import Gap
from qwenstack.core.loop_turns import LoopTurns
from qwenstack.core.messages import Message
from qwenstack.core.outputs import CompletionOutput, OutputDelta, RequestOutput
from qwenstack.core.protocols import AsyncLLM, EngineStats, ModelCard
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.core.turns import FairTurns
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.errors import ForbiddenModelError, UnknownModelError
from qwenstack.serving.identity import Identity
from qwenstack.serving.limiter import ASSUMED_ANSWER_TOKENS, Limiter, Reservation
from qwenstack.serving.merge import merge_streams
from qwenstack.serving.metrics import Metrics, RequestTimer
from qwenstack.serving.traces import NO_TRACES, Generation, Traces

Result = TypeVar("Result")

DEFAULT_MODEL_NAME = "default"
LATEST = ":latest"
"""The tag with which Ollama lists a model, and which means no other one. Editors find a model there and ask for it by
that name over OpenAI's wire: a name means the same with it on all wires."""
MAX_ANSWERS = 64
"""Prompts times `n` of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model reads."""

    token_ids: Sequence[int]
    text: str | None = None
    """The text it was made of, where there was one."""
    is_chat: bool = False
    """Whether it is a conversation."""
    is_cut: bool = False
    """Whether something was left out to make it fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimit:
    """What `max_tokens` is to a wire."""

    field: str = "max_tokens"
    """What the wire calls it."""
    is_ceiling: bool = False
    """Whether it is lowered to what the context leaves, not refused: nobody asked for it, or the wire means it so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """One checked request: its prompts, each answered `params.n` times.

    Raises:
        RequestError: it asks for too many answers at once.
    """

    request_id: str
    prompts: Sequence[Prompt]
    params: SamplingParams
    options: RequestOptions
    caller: Identity
    """Who is charged for it."""
    limit: AnswerLimit = AnswerLimit()
    """What `params.max_tokens` is to who asked."""

    def __post_init__(self) -> None:
        """Bound what one request may ask for."""
        num_answers = len(self.prompts) * self.params.n
        if num_answers > MAX_ANSWERS:
            raise RequestError(
                f"{len(self.prompts)} prompts with `n` {self.params.n} make {num_answers} answers; "
                f"one request may ask for {MAX_ANSWERS}.",
                param="n",
                code="invalid_value",
            )

    @property
    def unstreamed(self) -> GenerationJob:
        """The same job for who wants the whole alone: its pieces come joined."""
        return replace(self, options=replace(self.options, stream=False))

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that all answers together may have, or are assumed to where nothing limits them."""
        return len(self.prompts) * self.params.n * (self.params.max_tokens or ASSUMED_ANSWER_TOKENS)


class Piece(NamedTuple):
    """What one step added to an answer of one of a job's prompts."""

    prompt_index: int
    delta: OutputDelta


class UsageTally:
    """Counts a job's tokens while they come."""

    def __init__(self, job: GenerationJob) -> None:
        """Start with the prompts."""
        self.prompt_tokens = job.num_prompt_tokens
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self._cached = [0] * len(job.prompts)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed again."""
        return sum(self._cached)

    def note(self, piece: Piece) -> None:
        """Add one piece."""
        self.completion_tokens += piece.delta.num_generated_tokens
        self.reasoning_tokens += piece.delta.num_reasoning_tokens
        if piece.delta.index == 0:  # the others find what the first one computed
            cached = self._cached[piece.prompt_index]
            self._cached[piece.prompt_index] = max(cached, piece.delta.num_cached_tokens)


class GenerationService:
    """The model as the wires see it."""

    def __init__(
        self,
        llm: AsyncLLM,
        config: ServeConfig,
        metrics: Metrics,
        limiter: Limiter,
        *,
        turns: LoopTurns,
        traces: Traces = NO_TRACES,
    ) -> None:
        """Serve `llm` under the name and with the defaults of `config`, as much as `limiter` lets through.

        Raises:
            ConfigError: an adapter has the model's own name.
        """
        self._llm = llm
        self._metrics = metrics
        self._limiter = limiter
        self._traces = traces
        self._turns = turns
        self._readings = FairTurns(os.cpu_count() or 1)  # as many as the model's side has threads for texts
        self._default_params = config.default_params
        self.card: ModelCard = replace(llm.card, id=config.served_model_name or llm.card.id)
        """What clients are told."""
        taken = {self.card.id, DEFAULT_MODEL_NAME}.intersection(llm.adapter_names)
        if taken:
            raise ConfigError(f"An adapter is called {taken.pop()!r}, as the model itself is. Give it another name.")

    @property
    def adapter_names(self) -> Sequence[str]:
        """LoRA adapters, each of which is a model of its own to clients."""
        return self._llm.adapter_names

    @property
    def default_params(self) -> SamplingParams:
        """What holds where a request says nothing."""
        return self._default_params

    def may_use(self, model: str, caller: Identity) -> bool:
        """Whether somebody may use a model of this id."""
        return caller.models is None or model in caller.models

    def adapter_of(self, model: str, caller: Identity) -> str | None:
        """Return the adapter that a model's name stands for; None for the model as it is.

        An adapter is named alone or behind its model: `ADAPTER` or `MODEL:ADAPTER`.

        Every wire asks here, so this is also where a key that is for some models only is held to them.

        Raises:
            UnknownModelError: it is neither.
            ForbiddenModelError: the caller may not use it.
        """
        name = model if self._is_served(model) else model.removesuffix(LATEST)
        adapter = self._adapter_name(name)
        if adapter is None and not self._is_served(name):
            known = ", ".join(repr(name) for name in self.names_for(caller)) or "none for this API key"
            text = f"The model {model[:200]!r} is not served here. This server has {known}."
            raise UnknownModelError(text, param="model", code="model_not_found")
        if not self.may_use(adapter or self.card.id, caller):
            raise ForbiddenModelError(
                f"This API key is not for the model {model[:200]!r}.", param="model", code="model_not_allowed"
            )
        return adapter

    def names_for(self, caller: Identity) -> Sequence[str]:
        """Return the models that somebody may use, the one without an adapter first."""
        return [name for name in (self.card.id, *self.adapter_names) if self.may_use(name, caller)]

    def choose_params(
        self, given: Mapping[str, object], *, max_tokens: int | None = None, limit: AnswerLimit = AnswerLimit()
    ) -> SamplingParams:
        """Lay what a request gives over the server's defaults.

        Args:
            given: values by `SamplingParams` name.
            max_tokens: holds where the request gives none.
            limit: what it is to the wire.

        Raises:
            RequestError: a value is outside its range.
        """
        params = replace(self._default_params, **{"max_tokens": max_tokens, **given})
        most = self.card.max_model_len
        if params.max_tokens is not None and params.max_tokens > most:
            if not limit.is_ceiling:
                text = f"`{limit.field}` is {params.max_tokens}; the context has {most} tokens in all. Ask for less."
                raise RequestError(text, param=limit.field, code="invalid_value")
            params = replace(params, max_tokens=most)
        for field, token_ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            self._check_token_ids(token_ids, field)
        return params

    async def read_chat(
        self,
        messages: Sequence[Message],
        caller: Identity,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
    ) -> Prompt:
        """Turn a conversation into a prompt that fits.

        Raises:
            RateLimitError: the caller has used what it may.
            RequestError: the template refuses it, or it is too long.
        """
        encode = partial(self._llm.encode_chat, messages, tools=tools, enable_thinking=enable_thinking)
        token_ids = await self._read(encode, caller)
        self._check_length(token_ids, "messages")
        return Prompt(token_ids=token_ids, is_chat=True)

    async def tokenize_chat(
        self,
        messages: Sequence[Message],
        caller: Identity,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
    ) -> list[int]:
        """Turn a conversation into tokens, whether or not they fit.

        Raises:
            RateLimitError: the caller waits for as much as it may.
            RequestError: the template refuses it.
        """
        encode = partial(self._llm.encode_chat, messages, tools=tools, enable_thinking=enable_thinking)
        return await self._read(encode, caller, for_answer=False)

    async def read_text(self, text: str, caller: Identity) -> Prompt:
        """Turn plain text into a prompt that fits.

        Raises:
            RateLimitError: the caller has used what it may.
            RequestError: it is empty, too long, or no text.
        """
        token_ids = await self._read(partial(self._llm.encode, text), caller)
        self._check_length(token_ids, "prompt")
        return Prompt(token_ids=token_ids, text=text)

    async def read_gap(
        self,
        gap: Gap,
        params: SamplingParams,
        caller: Identity,
        *,
        may_cut: bool = False,
        limit: AnswerLimit = AnswerLimit(),
    ) -> tuple[Prompt, SamplingParams]:
        """Turn a gap in a file into a prompt that fits beside the answer, and add what ends the answer.

        Args:
            gap: what is around it.
            params: how it is to be filled.
            caller: who asks.
            may_cut: whether what is far from the gap may be left out.
            limit: what the answer's limit is to the wire.

        Raises:
            RateLimitError: the caller has used what it may.
            RequestError: the model cannot fill gaps, a text is no text, or it does not fit.
        """
        quarter = self.card.max_model_len // 4
        asked = params.max_tokens or quarter
        room = self.card.max_model_len - (min(asked, quarter) if limit.is_ceiling else asked)
        written = await self._read(partial(self._llm.encode_infill, gap, max_tokens=room), caller)
        if written.is_cut and not may_cut:
            text = f"`prompt` and `suffix` have more than the {room} tokens that the context leaves. Shorten them."
            raise RequestError(text, param="prompt", code="context_length_exceeded")
        stops = [*params.stop_token_ids, *written.stop_token_ids]
        return Prompt(token_ids=written.token_ids, is_cut=written.is_cut), replace(params, stop_token_ids=stops)

    async def tokenize(self, text: str, caller: Identity) -> list[int]:
        """Turn plain text into tokens, whether or not they fit.

        Raises:
            RateLimitError: the caller waits for as much as it may.
            RequestError: it is no text.
        """
        return await self._read(partial(self._llm.encode, text), caller, for_answer=False)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of at most as many tokens as the context has.

        Raises:
            RequestError: there are more, or one that the model does not have.
        """
        if len(token_ids) > self.card.max_model_len:
            text = f"`tokens` has {len(token_ids)} tokens; at most {self.card.max_model_len} are taken."
            raise RequestError(text, param="tokens", code="invalid_value")
        self._check_token_ids(token_ids, "tokens")
        return await asyncio.to_thread(self.text_of, token_ids)

    def read_tokens(self, token_ids: Sequence[int]) -> Prompt:
        """Take token ids as a prompt.

        Raises:
            RequestError: there are none, too many, or one that the model does not have.
        """
        self._check_length(token_ids, "prompt")
        self._check_token_ids(token_ids, "prompt")
        return Prompt(token_ids=token_ids)

    def model_name(self, job: GenerationJob) -> str:
        """Return what the model that answers a job is called."""
        return job.options.adapter or self.card.id

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes that a token stands for."""
        return self._llm.token_bytes(token_id)

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return the text that tokens stand for, control tokens included; U+FFFD where they are not UTF-8."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def reserve(self, job: GenerationJob) -> Reservation:
        """Take what a job may need, for `generate` to use later; the reservation is settled by a `with` block.

        Raises:
            RateLimitError: the caller has used what it may.
            RequestError: it asks for more than it ever may, or than the context holds.
        """
        job = self._fitted(job)
        return self._limiter.reserve(
            job.caller, prompt_tokens=job.num_prompt_tokens, answer_tokens=job.num_answer_tokens
        )

    async def generate(self, job: GenerationJob, reserved: Reservation | None = None) -> AsyncGenerator[Piece]:
        """Yield the pieces of all answers as they come; closing the generator cancels the job.

        Every wire's answers come from here, so this is also where callers are held to their limits.

        Args:
            job: what is asked.
            reserved: what was taken for it beforehand, which whoever did settles.

        Raises:
            RequestError: it asks for more than it ever may, or than the context holds.
            RateLimitError: the caller has used what it may.
            CapacityError: there is no room.
            EngineError: the engine failed.
        """
        with self.reserve(job) if reserved is None else nullcontext(reserved) as reservation:
            job = self._fitted(job)
            streams = [self._generate_one(job, index) for index in range(len(job.prompts))]
            pieces = streams[0] if len(streams) == 1 else merge_streams(streams)
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        reservation.prompt_tokens = job.num_prompt_tokens
                        reservation.completion_tokens += piece.delta.num_generated_tokens
                        yield piece
            except (asyncio.CancelledError, GeneratorExit):
                reservation.prompt_tokens = job.num_prompt_tokens  # whoever leaves has had them read all the same
                raise

    async def complete(self, job: GenerationJob, tally: UsageTally | None = None) -> list[RequestOutput]:
        """Run a job to its end; one output for each prompt, and the tokens counted in `tally`.

        Nobody sees the pieces, so they come joined: who leaves is charged for all but each answer's last tokens.

        Raises:
            CapacityError: there is no room.
            EngineError: the engine failed.
        """
        outputs = [
            RequestOutput(
                request_id=job.request_id,
                prompt=prompt.text,
                prompt_token_ids=prompt.token_ids,
                outputs=[
                    CompletionOutput(index=index, logprobs=None if job.params.logprobs is None else [])
                    for index in range(job.params.n)
                ],
            )
            for prompt in job.prompts
        ]
        async with aclosing(self.generate(job.unstreamed)) as pieces:
            async for piece in pieces:
                outputs[piece.prompt_index].add(piece.delta)
                if tally is not None:
                    tally.note(piece)
        return outputs

    async def stats(self, *, timeout_s: float) -> EngineStats | None:
        """Ask the engine for its counters; None where it does not answer in time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._llm.stats()
        except (EngineError, TimeoutError):
            return None

    async def _read(
        self,
        encode: Callable[[], Awaitable[Result]],
        caller: Identity,
        *,
        for_answer: bool = True,
    ) -> Result:
        """Read a text when it is the caller's turn.

        Every wire's texts come through here, so this is where reading is held to the caller's limits and shared evenly.
        """
        with self._limiter.reading(caller, for_answer=for_answer):
            return await self._readings.run(caller.tenant, encode)

    def _is_served(self, model: str) -> bool:
        return model in {self.card.id, DEFAULT_MODEL_NAME} or self._adapter_name(model) is not None

    def _adapter_name(self, model: str) -> str | None:
        name = model if model in self.adapter_names else model.removeprefix(f"{self.card.id}:")
        return name if name in self.adapter_names else None

    async def _generate_one(self, job: GenerationJob, prompt_index: int) -> AsyncGenerator[Piece]:
        request_id = job.request_id if len(job.prompts) == 1 else f"{job.request_id}-{prompt_index}"
        prompt_ids = job.prompts[prompt_index].token_ids
        timer = RequestTimer(self._metrics, tenant=job.options.tenant, num_prompt_tokens=len(prompt_ids))
        unfinished, is_ceiling = job.params.n, job.limit.is_ceiling
        try:
            with self._traces.generation(self._told(job, prompt_index, request_id)) as span:
                params = _lowered(job.params, self.card.max_model_len - len(prompt_ids)) if is_ceiling else job.params
                deltas = self._llm.generate(prompt_ids, params, request_id=request_id, options=job.options)
                async with aclosing(deltas):
                    async for delta in deltas:
                        timer.note(delta)
                        span.note(delta)
                        if delta.finish_reason in {"abort", "error"}:
                            raise EngineError(
                                delta.error or "The engine ended the request before its answer was complete."
                            )
                        unfinished -= delta.finish_reason is not None
                        yield Piece(prompt_index, delta)
                        if not unfinished:  # what is left to do of an answer takes a millisecond
                            await self._turns.wait(job.caller.line)
                if unfinished:
                    raise EngineError(f"The engine left {unfinished} answers without an end.")
        except RequestError as error:
            raise _in_wire_words(error, job.params) from error
        except (asyncio.CancelledError, GeneratorExit):
            if unfinished:
                self._metrics.count_answer("abort")
            raise
        finally:
            timer.finish()

    def _told(self, job: GenerationJob, prompt_index: int, request_id: str) -> Generation:
        """Return what a trace is told of a prompt."""
        prompt = job.prompts[prompt_index]
        return Generation(
            operation="chat" if prompt.is_chat else "text_completion",
            model=self.model_name(job),
            request_id=request_id,
            num_prompt_tokens=len(prompt.token_ids),
            params=job.params,
        )

    def _fitted(self, job: GenerationJob) -> GenerationJob:
        """Return the job with an answer that the context has room for.

        Raises:
            RequestError: there is no room for what it asks.
        """
        most, asked = self.card.max_model_len, job.params.max_tokens
        lengths = [len(prompt.token_ids) for prompt in job.prompts]
        if job.limit.is_ceiling:
            return replace(job, params=_lowered(job.params, most - min(lengths)))
        num_prompt = max(lengths)
        room = most - num_prompt
        if asked is None or asked <= room:
            return job
        raise RequestError(
            f"The prompt has {num_prompt} tokens and `{job.limit.field}` is {asked}, together more than the {most} of "
            f"this model's context. Ask for at most {room}, or send a shorter prompt.",
            param=job.limit.field,
            code="context_length_exceeded",
        )

    def _check_length(self, token_ids: Sequence[int], field: str) -> None:
        limit = self.card.max_model_len
        if not token_ids:
            raise RequestError(
                f"`{field}` is empty; the model needs at least one token.", param=field, code="invalid_value"
            )
        if len(token_ids) >= limit:
            raise RequestError(
                f"`{field}` has {len(token_ids)} tokens; the context has {limit} for prompt and answer. Shorten it.",
                param=field,
                code="context_length_exceeded",
            )

    def _check_token_ids(self, token_ids: Mapping[int, float] | Sequence[int], field: str) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.card.vocab_size:
                raise RequestError(
                    f"`{field}` has token id {token_id}; this model's ids are 0 to {self.card.vocab_size - 1}.",
                    param=field,
                    code="invalid_value",
                )


def _lowered(params: SamplingParams, room: int) -> SamplingParams:
    """Lower the limit of an answer to what there is room for."""
    return params if params.max_tokens is None else replace(params, max_tokens=min(params.max_tokens, room))


def _in_wire_words(error: RequestError, params: SamplingParams) -> RequestError:
    """Name the field of the request that became a grammar, where the grammar is to blame."""
    if error.param != "grammar" or params.grammar is None:
        return error
    field = "tools" if params.grammar.kind == "tools" else "response_format"
    return RequestError(str(error), param=field, code=error.code)
