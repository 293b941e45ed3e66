"""A model with a known next token: it answers with the last line that it was told, or as a test says, byte by byte."""

from __future__ import annotations

import asyncio
import codecs
import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from support.byte_tokenizer import ByteTokenizer

from qwenstack.core.errors import CapacityError, EngineError, RequestError
from qwenstack.core.infill import Gap, InfillPrompt
from qwenstack.core.messages import Message
from qwenstack.core.outputs import OutputDelta, TokenLogprob
from qwenstack.core.protocols import AdapterInfo, EngineStats, ModelCard, ModelShape
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream

END = 256
CARD = ModelCard(
    id="toy/echo",
    created=1_700_000_000,
    max_model_len=512,
    vocab_size=257,
    num_parameters=1,
    weight_format="F32",
    shape=ModelShape(
        architecture="qwen3",
        file_format="safetensors",
        size_bytes=4,
        hidden_size=1,
        intermediate_size=3,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=5,
        head_dim=7,
    ),
    chat_template="{{ messages }}",
    takes_tools=True,
    fills_gaps=True,
)


@dataclass
class ToyLLM:
    """One token a byte; token 256 ends the answer."""

    step_s: float = 0.0
    first_step_s: float = 0.0
    error: Exception | None = None
    """Raised before the first token."""
    fail_after: int | None = None
    """Tokens after which the engine fails."""
    is_ready: bool = True
    endless: bool = False
    says: str | None = None
    """What it answers, as the engine would let it out: thinking, calls and stop strings are taken apart."""
    card: ModelCard = CARD
    num_open: int = 0
    num_steps: int = 0
    steps_after_close: int = 0
    seen: list[SamplingParams] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    options: list[RequestOptions] = field(default_factory=list)
    adapters: tuple[str, ...] = ()
    adapter_error: Exception | None = None
    """Raised instead of loading an adapter."""
    adapter_paths: list[Path] = field(default_factory=list)
    """Those that were loaded."""
    fills_gaps: bool = True
    may_read: asyncio.Event | None = None
    """Texts that are being read wait for it."""
    num_read: int = 0
    """Texts whose reading has begun."""

    async def encode(self, text: str) -> list[int]:
        await self._read()
        try:
            return list(text.encode())
        except UnicodeEncodeError:
            raise RequestError("The text has a lone surrogate.", param="prompt") from None

    async def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
    ) -> list[int]:
        await self._read()
        lines = [f"[{message.role}] {message.content}" for message in messages]
        if tools:
            lines.insert(0, f"[tools] {len(tools)}")
        if enable_thinking is not None:
            lines.insert(0, f"[thinking] {enable_thinking}")
        return list("\n".join(lines).encode())

    async def encode_infill(self, gap: Gap, *, max_tokens: int) -> InfillPrompt:
        await self._read()
        if not self.fills_gaps:
            raise RequestError("This model cannot fill gaps.", code="infill_not_supported")
        files = "".join(f"[file {file.path}]{file.text}" for file in gap.context)
        written = f"{files}[prefix]{gap.prefix}[suffix]{gap.suffix}[middle]".encode()
        return InfillPrompt(token_ids=written[-max_tokens:], stop_token_ids=[0], is_cut=len(written) > max_tokens)

    async def _read(self) -> None:
        self.num_read += 1
        if self.may_read is not None:
            await self.may_read.wait()

    @property
    def adapter_names(self) -> Sequence[str]:
        return self.adapters

    async def list_adapters(self) -> Sequence[AdapterInfo]:
        return [
            AdapterInfo(name=name, rank=2, num_bytes=10, num_sequences=0, digest="0" * 64) for name in self.adapters
        ]

    async def load_adapter(self, name: str, path: Path) -> Sequence[AdapterInfo]:
        if self.adapter_error is not None:
            raise self.adapter_error
        self.adapters = (*dict.fromkeys((*self.adapters, name)),)
        self.adapter_paths.append(path)
        return await self.list_adapters()

    async def unload_adapter(self, name: str) -> Sequence[AdapterInfo]:
        self.adapters = tuple(other for other in self.adapters if other != name)
        return await self.list_adapters()

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == END else bytes([token_id])

    async def stats(self) -> EngineStats:
        if not self.is_ready:
            raise EngineError("secret path /tmp/engine.sock")
        return EngineStats(
            num_requests_running=self.num_open,
            num_requests_waiting=0,
            num_blocks_total=10,
            num_blocks_free=10 - self.num_open,
            num_preemptions=0,
            prompt_tokens=1,
            generation_tokens=self.num_steps,
            prefix_cache_queries=0,
            prefix_cache_hits=0,
            num_steps=self.num_steps,
            num_out_of_memory=2,
        )

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = RequestOptions(),
    ) -> AsyncGenerator[OutputDelta]:
        self.seen.append(params)
        self.prompts.append(list(prompt_token_ids))
        self.request_ids.append(request_id)
        self.options.append(options)
        self.num_open += 1
        try:
            if self.error is not None:
                raise self.error
            await asyncio.sleep(self.first_step_s)
            for index in range(params.n):
                if self.says is not None:
                    for delta in self._say(self.says, params, request_id, index):
                        await asyncio.sleep(self.step_s)
                        yield delta
                    continue
                async for delta in self._answer(prompt_token_ids, params, request_id, index):
                    yield delta
        finally:
            self.num_open -= 1

    async def _answer(
        self, prompt: Sequence[int], params: SamplingParams, request_id: str, index: int
    ) -> AsyncGenerator[OutputDelta]:
        answer = self._answer_bytes(prompt, params, index)
        limit = params.max_tokens or CARD.max_model_len - len(prompt)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = ""
        tokens = [*answer, END]
        for number in range(10**9) if self.endless else range(len(tokens)):
            token = tokens[number % len(answer)] if self.endless else tokens[number]
            await asyncio.sleep(self.step_s)
            self.num_steps += 1
            if self.fail_after is not None and number >= self.fail_after:
                yield OutputDelta(request_id=request_id, index=index, finish_reason="error", error="secret /dev/mem")
                return
            new = decoder.decode(self.token_bytes(token))
            text += new
            stop = next((word for word in params.stop if word in text), None)
            if stop is not None:
                new = new[: len(new) - (len(text) - text.index(stop))] if len(stop) == 1 else ""
            reason = "stop" if token == END or stop else "length" if number + 1 == limit else None
            yield OutputDelta(
                request_id=request_id,
                index=index,
                text=new,
                token_ids=(token,),
                num_generated_tokens=1,
                logprobs=None if params.logprobs is None else (_logprob(token, params.logprobs),),
                finish_reason=reason,
                stop_reason=stop,
                num_cached_tokens=3,
                prompt_logprobs=_prompt_logprobs(prompt, params) if index == number == 0 else None,
            )
            if reason is not None:
                return

    def _say(self, text: str, params: SamplingParams, request_id: str, index: int) -> Iterator[OutputDelta]:
        limit = params.max_tokens or 1000
        answer = AnswerStream(cast("Any", ByteTokenizer(has_marks=False)), params, max_tokens=limit)
        waiting = [*text.encode(), END]
        while True:
            token = (answer.forced_token_ids() or waiting)[0]
            if not answer.forced_token_ids():
                waiting.pop(0)
            logprob = None if params.logprobs is None else _logprob(token, params.logprobs)
            released = answer.push(token, logprob)
            fields = {name: getattr(released, name) for name in type(released).__dataclass_fields__}
            fields["logprobs"] = None if params.logprobs is None else fields["logprobs"]
            yield OutputDelta(request_id=request_id, index=index, **fields)
            if released.finish_reason is not None:
                return

    def _answer_bytes(self, prompt: Sequence[int], params: SamplingParams, index: int) -> bytes:
        last = bytes(prompt).decode(errors="replace").split("\n")[-1]
        if params.temperature == 0 or (params.seed is None and index == 0):
            return f"echo: {last}".encode()
        dice = random.Random(f"{params.seed} {index}")
        return f"echo {dice.randrange(1000)}: {last}".encode()


def _logprob(token: int, count: int) -> TokenLogprob:
    top = [(token, -0.5), ((token + 1) % 256, -1.5), ((token + 2) % 256, float("-inf"))][:count]
    return TokenLogprob(token_id=token, logprob=-0.5, top=top)


def _prompt_logprobs(prompt: Sequence[int], params: SamplingParams) -> list[TokenLogprob | None] | None:
    if params.prompt_logprobs is None:
        return None
    return [None, *(_logprob(token, params.prompt_logprobs) for token in prompt[1:])]


FULL = CapacityError("The queue is full: 8 requests wait. Try again in a moment.")
