"""From a path to a model that is ready to run: open, check the memory, pack the weights, reserve the cache."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qwenstack.core.errors import CapacityError, ConfigError, ModelFormatError, RequestError
from qwenstack.core.protocols import ModelCard, ModelShape
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.core.weight_type import WeightType
from qwenstack.engine.adapters import AdapterSet
from qwenstack.engine.config import MAX_YARN_FACTOR, EngineConfig
from qwenstack.engine.memory import available_memory_bytes
from qwenstack.engine.precision import PrecisionPolicy
from qwenstack.engine.scheduler import blocks_for
from qwenstack.hub.checkpoint import Checkpoint, open_checkpoint
from qwenstack.kernels import Kernels, load_kernels
from qwenstack.models import (
    Decoder,
    KVCache,
    ModelConfig,
    WeightReader,
    kv_bytes_per_token,
    merge_adapter,
    read_config,
)
from qwenstack.tokenizer import Tokenizer

PACKING_OVERHEAD = 1.12
"""Packed weights beside the stored ones: rows are padded to 16, and Q2_K and Q3_K widen to 4 bits."""
WORKING_BYTES = 200 << 20
"""Activations, logits, vocabulary and the interpreter."""
_SMALL_MODEL_PARAMETERS = 300_000_000
"""Small models feel the rounding of activations most and can best afford to avoid it: int8 costs SmolLM2-135M a mean KL
of 0.0042 and the capital of France, Qwen2.5-Coder-0.5B 0.0007 (`docs/lab-notes.md`, 2026-11-22)."""
_DEFAULT_CONTEXTS = 4
"""Full contexts that the cache holds where nobody says how much memory it may take."""
_SHORTEST_DEFAULT = 4096
"""A chat with less is not worth starting without asking."""
_KV_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}

_QWEN_SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
_QWEN3_SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
_SMALL_MODEL_SAMPLING = {"temperature": 0.0}
"""Sampled, a model of this size soon loses the thread: SmolLM2-135M gives "The" and "L" nearly the same probability as
the beginning of what the capital of France is."""
_SAMPLING_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything that an engine runs on."""

    config: EngineConfig
    card: ModelCard
    decoder: Decoder
    weight_bytes: int
    """Of all tensors in the format they were loaded in, before packing."""
    kv_cache: KVCache
    tokenizer: Tokenizer
    precision: PrecisionPolicy
    """The class of each request, by the length of its prompt."""
    adapters: AdapterSet | None = None
    """None: a decoder that takes no adapters."""


def load_model(
    config: EngineConfig, *, instrument: Callable[[Kernels], Kernels] = lambda kernels: kernels
) -> LoadedModel:
    """Open a model and make it ready; `instrument` may wrap the kernels, to measure them.

    Raises:
        CheckpointError: the model is missing, damaged or of a kind that is not read here.
        CapacityError: it does not fit into memory.
        ConfigError: the machine lacks the instruction set asked for, or the context is beyond the model's.
    """
    checkpoint = open_checkpoint(config.model_path)
    model_config = read_config(checkpoint)
    if config.yarn_factor is not None:
        model_config = model_config.stretched(config.yarn_factor)
    reader = WeightReader(checkpoint, model_config, config.weight_format)
    if config.merged_adapter is not None:
        reader = merge_adapter(config.merged_adapter, reader, model_config)
    precision = precision_policy(config, num_parameters=model_config.num_parameters)
    kernels = instrument(kernels_for(config, precision))
    adapters = load_adapters(config, model_config, kernels, is_quantized=not reader.prevailing_type.is_float)
    dtype = kv_dtype_of(config, reader)
    cache = plan_cache(
        config,
        trained_len=model_config.context_length,
        yarn_from=_yarn_from(config, model_config),
        bytes_per_token=kv_bytes_per_token(model_config, dtype),
        weight_bytes=int(reader.num_bytes * PACKING_OVERHEAD) + reader.conversion_bytes + WORKING_BYTES,
        available_bytes=available_memory_bytes(),
    )
    decoder = Decoder(model_config, reader, kernels)
    tokenizer = load_tokenizer(checkpoint)
    return LoadedModel(
        config=config,
        card=ModelCard(
            id=config.model_name,
            created=int(time.time()),
            max_model_len=cache.max_model_len,
            vocab_size=min(tokenizer.vocab_size, model_config.vocab_size),
            num_parameters=model_config.num_parameters,
            weight_format=reader.prevailing_type.name,
            shape=describe_shape(model_config, checkpoint, reader),
            chat_template=tokenizer.chat_template_source,
            takes_tools=tokenizer.chat_markers.tool_call is not None,
            thinks=tokenizer.chat_markers.thinking is not None,
            # Qwen's chat models have the marks in their vocabulary, too, and were not trained to use them.
            fills_gaps=tokenizer.fills_gaps and "code" in config.model_name.lower(),
        ),
        decoder=decoder,
        weight_bytes=reader.num_bytes,
        kv_cache=KVCache.allocate(model_config, num_blocks=cache.num_blocks, block_size=config.block_size, dtype=dtype),
        tokenizer=tokenizer,
        precision=precision,
        adapters=adapters,
    )


def describe_shape(model_config: ModelConfig, checkpoint: Checkpoint, reader: WeightReader) -> ModelShape:
    """Say what a model is made of."""
    experts = model_config.experts
    return ModelShape(
        architecture=model_config.gguf_architecture,
        file_format=checkpoint.format,
        size_bytes=reader.num_bytes,
        hidden_size=model_config.hidden_size,
        intermediate_size=model_config.intermediate_size,
        num_hidden_layers=model_config.num_hidden_layers,
        num_attention_heads=model_config.num_attention_heads,
        num_key_value_heads=model_config.num_key_value_heads,
        head_dim=model_config.head_dim,
        num_experts=None if experts is None else experts.num_experts,
        num_experts_per_tok=None if experts is None else experts.num_experts_per_tok,
    )


def load_adapters(
    config: EngineConfig, model_config: ModelConfig, kernels: Kernels, *, is_quantized: bool
) -> AdapterSet:
    """Return the adapters that requests may name from the start.

    Raises:
        ModelFormatError: one is damaged or for another model.
        CapacityError: they take too much memory.
    """
    adapters = AdapterSet(model_config, kernels, is_quantized=is_quantized, max_adapters=config.max_adapters)
    for source in config.adapter_sources:
        adapters.load(source.name, source.path)
    return adapters


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Return the tokenizer that a checkpoint carries.

    Raises:
        ModelFormatError: it carries none, or one of a kind that is not read here.
    """
    if checkpoint.format == "gguf":
        return Tokenizer.from_gguf(checkpoint.metadata)
    if checkpoint.tokenizer_json is None:
        raise ModelFormatError(
            f"{str(checkpoint.path)!r} has no `tokenizer.json`; copy it there from the model's page."
        )
    return Tokenizer.from_hf(checkpoint.tokenizer_json, checkpoint.tokenizer_config, checkpoint.chat_template)


def default_sampling(checkpoint: Checkpoint) -> Mapping[str, float | int]:
    """Return what the model's makers recommend where a request says nothing.

    From the checkpoint's `generation_config.json`; GGUF files carry none, for them the published values of the family,
    and the likeliest token for models under 300 million parameters.
    Source: Qwen3 technical report, arXiv:2505.09388, section 4.6; `generation_config.json` of Qwen2.5.
    """
    if checkpoint.generation_config:
        stored = checkpoint.generation_config
        numbers = {name: value for name in _SAMPLING_NAMES if isinstance(value := stored.get(name), int | float)}
        try:
            dataclasses.replace(SamplingParams(), **numbers)
        except RequestError as error:
            raise ModelFormatError(f"generation_config.json recommends what cannot be: {error}") from error
        return numbers
    model_config = read_config(checkpoint)
    if model_config.num_parameters < _SMALL_MODEL_PARAMETERS:
        return dict(_SMALL_MODEL_SAMPLING)
    return dict(_QWEN3_SAMPLING if model_config.model_type.startswith("qwen3") else _QWEN_SAMPLING)


def precision_policy(config: EngineConfig, *, num_parameters: int) -> PrecisionPolicy:
    """Return how finely requests are computed: as asked for, or as suits a model of this size."""
    default = 16 if num_parameters < _SMALL_MODEL_PARAMETERS else 8
    return PrecisionPolicy(
        activation_bits=config.activation_bits or default, short_prompt_tokens=config.short_prompt_tokens
    )


def kernels_for(config: EngineConfig, precision: PrecisionPolicy) -> Kernels:
    """Return the kernels that a configuration asks for.

    Raises:
        ConfigError: the machine lacks the instruction set.
    """
    num_threads = config.num_threads or num_cores()
    try:
        return load_kernels(num_threads, config.isa, activation_bits=precision.activation_bits)
    except ValueError as error:
        raise ConfigError(f"`isa` is {config.isa!r} and `num_threads` {num_threads}: {error}") from error


def num_cores() -> int:
    """Return the cores that this process may use: the threads of the kernels where nobody says otherwise."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kv_dtype_of(config: EngineConfig, reader: WeightReader) -> np.dtype:
    """Return the type of keys and values: as asked for, or as suits the weights."""
    if config.kv_cache_dtype == "auto":
        return _KV_DTYPES["float32" if reader.prevailing_type is WeightType.F32 else "float16"]
    return _KV_DTYPES[config.kv_cache_dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """How much of the memory keys and values take."""

    max_model_len: int
    num_blocks: int


def plan_cache(
    config: EngineConfig,
    *,
    trained_len: int,
    yarn_from: int | None,
    bytes_per_token: int,
    weight_bytes: int,
    available_bytes: int,
) -> CachePlan:
    """Decide the longest context and the number of KV blocks: one full context at least, so that any request can end.

    Where nobody asks for a length and the trained one does not fit, it is as long as fits, but at least 4,096.

    Args:
        config: what was asked for.
        trained_len: positions that the model is made for, as it will run.
        yarn_from: positions from which YaRN would stretch it further; None where its files rule that out.
        bytes_per_token: of keys and values, in all layers.
        weight_bytes: of the packed weights and all else that is no cache.
        available_bytes: memory that is free.

    Raises:
        ConfigError: the length asked for is beyond the model's, or one context exceeds the memory asked for.
        CapacityError: weights and one context exceed what is free.
    """
    if config.max_model_len is not None and config.max_model_len > trained_len:
        raise ConfigError(
            f"`max_model_len` is {config.max_model_len}; this model was trained for {trained_len} positions. "
            f"Ask for at most that{_or_yarn(config.max_model_len, yarn_from)}."
        )
    free_bytes = available_bytes - weight_bytes
    fitting_len = free_bytes // bytes_per_token - config.block_size
    length = config.max_model_len or trained_len
    if config.max_model_len is None and config.kv_cache_memory_bytes is None and fitting_len >= _SHORTEST_DEFAULT:
        length = min(length, fitting_len)
    per_block = bytes_per_token * config.block_size
    least = blocks_for(length + 1, config.block_size)
    if config.kv_cache_memory_bytes is not None:
        wanted = config.kv_cache_memory_bytes // per_block
        if wanted < least:
            raise ConfigError(
                f"`kv_cache_memory_bytes` is {config.kv_cache_memory_bytes}; one context of {length} tokens takes "
                f"{least * per_block}. Give that much, or set a smaller `max_model_len`."
            )
    else:
        wanted = max(min(_DEFAULT_CONTEXTS * least, available_bytes // 4 // per_block, free_bytes // per_block), least)
    cache_bytes = wanted * per_block
    if cache_bytes > free_bytes:
        longest = f"a `max_model_len` of at most {fitting_len}, or " if fitting_len > 0 else ""
        raise CapacityError(
            f"{config.model_name} needs {_gigabytes(weight_bytes)} for its weights and {_gigabytes(cache_bytes)} "
            f"for contexts of {length} tokens; {_gigabytes(available_bytes)} are free. "
            f"Set {longest}take a smaller model, such as `smollm2-135m`."
        )
    return CachePlan(max_model_len=length, num_blocks=wanted)


def _yarn_from(config: EngineConfig, model_config: ModelConfig) -> int | None:
    """Return the length that YaRN stretches, where the choice is the user's."""
    is_users_choice = config.yarn_factor is not None or model_config.rope_scaling is None
    return model_config.unstretched_length if is_users_choice else None


def _or_yarn(wanted_len: int, yarn_from: int | None) -> str:
    """Return how to reach a length by YaRN, as the end of a sentence; nothing where there is no way."""
    if yarn_from is None or wanted_len > MAX_YARN_FACTOR * yarn_from:
        return ""
    factor = -(-wanted_len // yarn_from)
    return f", or set `yarn_factor` to {factor}, which reaches {factor * yarn_from} at some cost for short texts"


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
