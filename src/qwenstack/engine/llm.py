"""`LLM`: the model in this process, for scripts, notebooks, benchmarks and the terminal chat.

llm = LLM("qwen2.5-coder-0.5b")
print(llm.generate("def fib(n):", SamplingParams(temperature=0, max_tokens=64))[0].outputs[0].text)
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, SupportsIndex, TypedDict, Unpack, cast

from qwenstack.core.errors import ConfigError, EngineError, RequestError
from qwenstack.core.messages import Message, parse_messages
from qwenstack.core.outputs import (
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    OutputDelta,
    RequestOutput,
    raise_if_failed,
)
from qwenstack.core.protocols import EngineStats, ModelCard
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import tools_not_supported
from qwenstack.engine.building import build_engine
from qwenstack.engine.config import EngineConfig, IsaName, KVCacheDtype
from qwenstack.engine.embedding import TextEmbedder, check_embedded_ids
from qwenstack.engine.loading import default_sampling
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.hub.pull import locate
from qwenstack.models import WeightFormat
from qwenstack.tokenizer import Tokenizer

_NO_OPTIONS = RequestOptions()
_NO_QUEUE_LIMIT = 1 << 20
"""One caller's own list needs no protection from itself."""


class TokensPrompt(TypedDict):
    """A prompt that is already tokenised."""

    prompt_token_ids: Sequence[int]


class SpeculativeConfig(TypedDict, total=False):
    """Who guesses tokens ahead, in vLLM's words."""

    method: Literal["ngram", "draft_model"]
    """`ngram`: the text itself; `draft_model`: a small model."""
    model: str | Path
    """The small model, of the same vocabulary; what `LLM` takes."""
    num_speculative_tokens: int
    """Guesses of an answer that one step may hold; fewer are made where more would not pay."""


class EngineOptions(TypedDict, total=False):
    """What `LLM` may be told, by the names of `EngineConfig`."""

    num_threads: int | None
    max_model_len: int | None
    yarn_factor: float | None
    kv_cache_memory_bytes: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    repetition_window: int
    journal_path: Path | None
    block_size: int
    weight_format: WeightFormat
    kv_cache_dtype: KVCacheDtype
    activation_bits: Literal[8, 16] | None
    short_prompt_tokens: int
    isa: IsaName
    speculation: Literal["ngram", "off"]
    draft_model_path: Path | None
    num_speculative_tokens: int
    enable_prefix_caching: bool
    prefix_cache_disk_bytes: int
    prefix_cache_dir: Path | None
    prefix_cache_max_age_s: int
    adapters: tuple[str, ...]
    max_adapters: int
    merged_adapter: Path | None


Prompt = str | TokensPrompt
Conversation = Sequence[Message | Mapping[str, object]]


class LLM:
    """A loaded model and its engine.

    Not for several threads at once: serve those with `qwenstack serve`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        model_name: str | None = None,
        speculative_config: SpeculativeConfig | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        """Load a model, fetching it first where it is not in the cache.

        Args:
            model: a registry name, a folder, a `.gguf` file, `hf:ORG/NAME[:FILE]` or `ms:ORG/NAME[:FILE]`.
            model_name: how the model calls itself in `card`; None: its registry name or its file's.
            speculative_config: who guesses tokens ahead; None: as `options` say, which is `ngram` where they say
                nothing. Guesses change no result.
            options: any of `EngineOptions`.

        Raises:
            CheckpointError: the model cannot be had or opened.
            CapacityError: it does not fit into memory.
            ConfigError: an option is outside its range.
        """
        unknown = [name for name in options if name not in EngineOptions.__annotations__]
        if unknown:
            known = ", ".join(EngineOptions.__annotations__)
            raise ConfigError(f"LLM has no option {unknown[0]!r}; it takes {known}.")
        if speculative_config is not None:
            twice = [name for name in ("speculation", "draft_model_path", "num_speculative_tokens") if name in options]
            if twice:
                raise ConfigError(f"`speculative_config` and `{twice[0]}` say the same; give one of them.")
            options |= _speculation_options(speculative_config)
        found = locate(str(model))
        config = EngineConfig(
            model_path=found.path,
            model_name=model_name or found.name,
            max_num_waiting=_NO_QUEUE_LIMIT,
            max_pending_grammars=_NO_QUEUE_LIMIT,
            **options,
        )
        self._engine = build_engine(config)
        self._closer = weakref.finalize(self, self._engine.close)
        self.default_sampling = default_sampling(open_checkpoint(found.path))
        """Sampling that the model's makers recommend, by the names of `SamplingParams`."""
        self._request_numbers = itertools.count()

    @property
    def card(self) -> ModelCard:
        """What is loaded."""
        return self._engine.model.card

    def close(self) -> None:
        """Write what waits for the disk, and stop what runs beside the engine; done at the program's end anyway."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> EngineStats:
        """Return the engine's counters."""
        return self._engine.stats()

    def get_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        return self._engine.model.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        options: RequestOptions = _NO_OPTIONS,
    ) -> list[RequestOutput]:
        """Complete one prompt or many at once; results are in the order of the prompts.

        Raises:
            RequestError: a prompt is no prompt, empty, too long or cannot be encoded; nothing has run then.
            EngineError: the computation failed.
        """
        listed = _as_list(prompts)
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        encode = self.get_tokenizer().encode
        ids = [encode(prompt) if isinstance(prompt, str) else _token_ids(prompt) for prompt in listed]
        return self._run(texts, ids, sampling_params, options)

    def embed(self, prompts: Prompt | Sequence[Prompt]) -> list[EmbeddingRequestOutput]:
        """Return the vectors of texts; for Qwen3-Embedding models, whose instructions are part of the text.

        A text gets what the model's tokenizer wants behind it; token ids are taken as they are.

        Raises:
            RequestError: a prompt is no prompt, empty, too long or cannot be encoded; or the model is of a family that
                does not embed.
            EngineError: this `LLM` is closed.
        """
        self._refuse_if_closed()
        tokenizer = self.get_tokenizer()
        ids = [
            [*tokenizer.encode(prompt), *tokenizer.text_end_ids] if isinstance(prompt, str) else _token_ids(prompt)
            for prompt in _as_list(prompts)
        ]
        for each in ids:
            check_embedded_ids(each, self.card)
        vectors_BD = self._text_embedder.embed(ids)
        return [
            EmbeddingRequestOutput(
                request_id=f"offline-{next(self._request_numbers)}",
                prompt_token_ids=token_ids,
                outputs=EmbeddingOutput(embedding=vector_D.tolist()),
            )
            for token_ids, vector_D in zip(ids, vectors_BD, strict=True)
        ]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
        options: RequestOptions = _NO_OPTIONS,
    ) -> list[RequestOutput]:
        """Answer one conversation or many at once.

        Raises:
            RequestError: as for `generate`, or the chat template refuses the conversation or has no place for tools.
            EngineError: the computation failed.
        """
        conversations = cast("Sequence[Conversation]", messages if _is_nested(messages) else [messages])
        ids = [self._encode_chat(turns, tools, enable_thinking) for turns in conversations]
        return self._run([None] * len(ids), ids, sampling_params, options)

    def stream_chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
        options: RequestOptions = _NO_OPTIONS,
    ) -> Generator[OutputDelta]:
        """Yield the answer to a conversation piece by piece; closing the generator cancels it.

        While a long prompt is read, empty deltas come, so that the caller can leave there too.

        Raises:
            RequestError: as for `chat`.
            EngineError: the computation failed.
        """
        ids = self._encode_chat(messages, tools, enable_thinking)
        self._refuse_second_answer()
        params = sampling_params or SamplingParams()
        request_id = self._submit(ids, params, options)
        num_open = params.n
        try:
            while num_open:
                for delta in self._engine.step() or [OutputDelta(request_id=request_id)]:
                    raise_if_failed(delta)
                    num_open -= delta.finish_reason is not None
                    yield delta
        finally:
            self._engine.abort(request_id)

    @cached_property
    def _text_embedder(self) -> TextEmbedder:
        model = self._engine.model
        if model.decoder.config.model_type != "qwen3":
            text = f"{model.card.id} is a model of type {model.decoder.config.model_type!r}, which does not embed."
            raise RequestError(f"{text} Load a Qwen3-Embedding model.")
        dtype = model.kv_cache.layers[0][0].dtype
        return TextEmbedder(model.decoder, max_tokens=model.card.max_model_len, kv_dtype=dtype)

    def _encode_chat(
        self, messages: Conversation, tools: Sequence[Mapping[str, object]] | None, enable_thinking: bool | None
    ) -> list[int]:
        tokenizer = self.get_tokenizer()
        if tools and not tokenizer.shows_tools:
            raise tools_not_supported()
        return tokenizer.encode_chat(parse_messages(messages), tools=tools, enable_thinking=enable_thinking)

    def _run(
        self,
        texts: Sequence[str | None],
        ids: Sequence[list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        options: RequestOptions,
    ) -> list[RequestOutput]:
        params = _one_each(sampling_params, len(ids))
        self._refuse_second_answer()
        submitted: list[str] = []
        try:
            for prompt_ids, choice in zip(ids, params, strict=True):
                submitted.append(self._submit(prompt_ids, choice, options))
            outputs = {
                request_id: RequestOutput(
                    request_id=request_id,
                    prompt=text,
                    prompt_token_ids=prompt_ids,
                    outputs=[CompletionOutput(index=index) for index in range(choice.n)],
                )
                for request_id, text, prompt_ids, choice in zip(submitted, texts, ids, params, strict=True)
            }
            while self._engine.has_work:
                for delta in self._engine.step():
                    raise_if_failed(delta)
                    outputs[delta.request_id].add(delta)
        except BaseException:
            for request_id in submitted:
                self._engine.abort(request_id)
            raise
        return list(outputs.values())

    def _refuse_second_answer(self) -> None:
        if self._engine.has_work:
            raise RequestError("Another answer of this LLM is still open; finish its generator, or close it, first.")

    def _refuse_if_closed(self) -> None:
        if not self._closer.alive:
            raise EngineError("This LLM is closed; make another one.")

    def _submit(self, prompt_token_ids: list[int], params: SamplingParams, options: RequestOptions) -> str:
        self._refuse_if_closed()
        request_id = f"offline-{next(self._request_numbers)}"
        self._engine.add_request(request_id, prompt_token_ids, params, options)
        return request_id


def _as_list(prompts: object) -> list[object]:
    """Return one prompt or many as a list; callers need not be typed."""
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        return [cast("object", prompts)]
    return list(cast("Iterable[object]", prompts))


def _token_ids(prompt: object) -> list[int]:
    given = cast("Mapping[str, object]", prompt).get("prompt_token_ids") if isinstance(prompt, Mapping) else None
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        text = f"A prompt is {prompt!r:.100}; it must be text, or token ids as `{{'prompt_token_ids': [1, 2, 3]}}`."
        raise RequestError(text, param="prompt", code="invalid_value")
    return [_token_id(each) for each in cast("Iterable[object]", given)]


def _token_id(given: object) -> int:
    try:
        return operator.index(cast("SupportsIndex", given))
    except TypeError:
        text = f"`prompt_token_ids` has {given!r:.100}; each must be the id of a token, a whole number."
        raise RequestError(text, param="prompt", code="invalid_value") from None


def _is_nested(messages: object) -> bool:
    """Whether these are several conversations; what is no list at all is for the reader of one to refuse."""
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        return False
    return isinstance(messages[0], Sequence)


def _one_each(
    sampling_params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if sampling_params is None:
        return [SamplingParams()] * count
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * count
    if len(sampling_params) != count:
        raise RequestError(
            f"{len(sampling_params)} sampling parameters for {count} prompts; give one, or one for each."
        )
    return sampling_params


def _speculation_options(config: SpeculativeConfig) -> EngineOptions:
    """Translate vLLM's words.

    Raises:
        ConfigError: a word is not one of them, or says something else than another.
    """
    unknown = [name for name in config if name not in SpeculativeConfig.__annotations__]
    if unknown:
        known = ", ".join(SpeculativeConfig.__annotations__)
        raise ConfigError(f"`speculative_config` has no field {unknown[0]!r}; it takes {known}.")
    model = config.get("model")
    method = config.get("method", "ngram" if model is None else "draft_model")
    if method not in ("ngram", "draft_model") or (method == "draft_model") != (model is not None):
        text = f"`speculative_config` has the method {method!r} and the model {str(model)!r}; "
        raise ConfigError(text + "it must be 'ngram' without a model, or 'draft_model' with one.")
    options: EngineOptions = {"speculation": "ngram"}
    if model is not None:
        options["draft_model_path"] = locate(str(model)).path
    if "num_speculative_tokens" in config:
        options["num_speculative_tokens"] = config["num_speculative_tokens"]
    return options
