"""What the layers above the engine know of a model: an asynchronous generator of tokens, not how it works."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qwenstack.core.embedding import EmbeddingInput, InputType, Vector
from qwenstack.core.infill import Gap, InfillPrompt
from qwenstack.core.messages import Message
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a model is made of."""

    architecture: str
    """The family, by the name that GGUF files have for it, such as `qwen3moe`."""
    file_format: str
    """Of its files, such as `gguf`."""
    size_bytes: int
    """Of its weights as they were read."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int | None = None
    """None: no mixture of experts."""
    num_experts_per_tok: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a client may know of the model that is served."""

    id: str
    """The name that requests use."""
    created: int
    """When it was loaded, in Unix seconds."""
    max_model_len: int
    """Prompt and answer together have at most this many tokens."""
    vocab_size: int
    """Token ids lie in `range(vocab_size)`."""
    num_parameters: int
    weight_format: str
    """The prevailing storage type of the weights, such as `Q5_0`."""
    shape: ModelShape | None = None
    """None: it is not known."""
    chat_template: str | None = None
    """Jinja source; None: the model takes no conversations."""
    takes_tools: bool = False
    """Whether its template says how tools are called."""
    thinks: bool = False
    """Whether its template marks thinking."""
    fills_gaps: bool = False
    """Whether it was trained to fill gaps in files, as its marks and its name say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The engine's counters since its start, and what it holds at this moment."""

    num_requests_running: int
    num_requests_waiting: int
    num_blocks_total: int
    num_blocks_free: int
    num_preemptions: int
    prompt_tokens: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_steps: int
    prefix_cache_disk_hits: int = 0
    """Those of `prefix_cache_hits` that were read back from disk."""
    num_draft_tokens: int = 0
    """Tokens that were guessed ahead."""
    num_accepted_tokens: int = 0
    """Guesses that were the token that would have been chosen anyway."""
    num_repetition_stops: int = 0
    """Answers that were ended because they only repeated themselves."""
    num_out_of_memory: int = 0
    """Answers that were ended because there was no memory for them."""

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV blocks in use, 0 to 1."""
        return 1.0 - self.num_blocks_free / self.num_blocks_total if self.num_blocks_total else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """A LoRA adapter that requests may name."""

    name: str
    rank: int
    """The largest rank of its matrices."""
    num_bytes: int
    """Memory that it takes."""
    num_sequences: int
    """Answers that are being made with it."""
    digest: str
    """SHA-256 of its tensors and scaling, in hexadecimal: two adapters of one digest compute the same."""


class AsyncLLM(Protocol):
    """A model that answers many callers at once."""

    @property
    def card(self) -> ModelCard:
        """What is served."""
        ...

    @property
    def adapter_names(self) -> Sequence[str]:
        """LoRA adapters that `RequestOptions` may name."""
        ...

    def encode(self, text: str) -> Awaitable[list[int]]:
        """Turn plain text into token ids; literal control tokens in it stay plain text.

        Raises:
            RequestError: the text cannot be encoded (lone surrogates).
        """
        ...

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
    ) -> Awaitable[list[int]]:
        """Turn a conversation into the prompt that the model was trained on, up to where its answer starts.

        Raises:
            RequestError: the template refuses the conversation, or a text cannot be encoded.
        """
        ...

    def encode_infill(self, gap: Gap, *, max_tokens: int) -> Awaitable[InfillPrompt]:
        """Turn a gap in a file into a prompt of at most `max_tokens`; what is far from it is left out where need be.

        Raises:
            RequestError: the model cannot fill gaps, or a text cannot be encoded.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes that a token stands for."""
        ...

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = RequestOptions(),
    ) -> AsyncGenerator[OutputDelta]:
        """Yield what each step adds, until every one of `params.n` answers has its `finish_reason`.

        Closing the generator cancels the request; its memory is free within one step.

        Raises:
            RequestError: the prompt does not fit, holds an unknown token id, or is empty; no such adapter is loaded; or
                the request is quarantined, since it ended the engine twice.
            CapacityError: the queue is full.
            EngineError: the engine failed or stopped.
        """
        ...

    async def list_adapters(self) -> Sequence[AdapterInfo]:
        """Return the LoRA adapters that requests may name, by name.

        Raises:
            EngineError: the engine does not answer.
        """
        ...

    async def load_adapter(self, name: str, path: Path) -> Sequence[AdapterInfo]:
        """Let requests name the LoRA adapter of a folder, also after a restart of the engine; return all there are.

        Requests that use an older one of this name end with it. If this fails, all is as before.

        Raises:
            ConfigError: the name cannot be one.
            CheckpointError: the folder holds no adapter for this model.
            CapacityError: there are too many adapters, or they take too much memory.
            EngineError: the engine does not answer.
        """
        ...

    async def unload_adapter(self, name: str) -> Sequence[AdapterInfo]:
        """Forget a LoRA adapter, and return those that are left; requests that use it run to their end.

        Raises:
            RequestError: there is none of that name.
            EngineError: the engine does not answer.
        """
        ...

    async def stats(self) -> EngineStats:
        """Return the engine's counters.

        Raises:
            EngineError: the engine does not answer; it is not ready.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderCard:
    """What a client may know of the model that makes vectors of texts."""

    id: str
    """The name that requests use."""
    created: int
    """Since when it is served, in Unix seconds."""
    dimensions: int
    """Numbers of a vector."""
    min_dimensions: int
    """The fewest that a vector may be shortened to; `dimensions` where the model was not trained for that."""
    max_tokens: int
    """Of one text, the model's own marks included."""
    input_types: tuple[InputType, ...]
    """Those that the model tells apart or can be asked for; the first is what a text is where nobody says."""
    takes_token_ids: bool
    """Whether texts may come as token ids."""
    num_parameters: int
    weight_format: str
    """The prevailing storage type of the weights, such as `Q4_0`."""
    shape: ModelShape | None = None
    """None: it is not known."""


class Embedder(Protocol):
    """A model that makes vectors of texts."""

    @property
    def card(self) -> EmbedderCard:
        """What is served."""
        ...

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory; one that is not is loaded with the next request."""
        ...

    async def prepare(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        input_type: InputType | None = None,
        truncate: bool = False,
        tenant: str = "",
    ) -> list[EmbeddingInput]:
        """Turn texts or token ids into what the model reads, and count it.

        Args:
            inputs: what is to be embedded.
            input_type: what the texts are; None: as each says itself, or the model's first type.
            truncate: leave out the end of what is too long; without it, it comes back with its true length.
            tenant: whose turn it is.

        Raises:
            RequestError: one of them is empty or no text, or has an id that the model does not have; the message names
                it as `input[N]`.
            EngineError: the model failed.
        """
        ...

    async def embed(self, inputs: Sequence[EmbeddingInput], *, tenant: str = "") -> list[Vector]:
        """Return the vector of each input; tenants take turns, and one that is cancelled stops soon.

        Which others are computed beside an input changes no bit of its vector.

        Raises:
            EngineError: the model failed.
        """
        ...
