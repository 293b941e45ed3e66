"""What the engine may be told: one frozen value, checked once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from qwenstack.core.errors import ConfigError
from qwenstack.engine.guards import MAX_PERIOD
from qwenstack.models import WeightFormat

KVCacheDtype = Literal["auto", "float32", "float16", "bfloat16", "int8"]
IsaName = Literal["auto", "avx512", "avx2", "neon", "scalar", "reference"]
MAX_DRAFTS = 16
"""Guesses checked in one step for one sequence: with more, the last ones are hardly ever right."""
MAX_YARN_FACTOR = 32
"""The largest that was ever tried: Peng et al. 2023, arXiv:2309.00071, section 4. Qwen's own advice is 4."""

MAX_ADAPTERS = 16
"""Loaded at a time where nobody says otherwise; 16 of rank 16 on all layers of a 0.5B model take 280 MB."""
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """A name, and the PEFT folder that it stands for."""

    name: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> AdapterSource:
        """Read `NAME=PATH`.

        Raises:
            ConfigError: the text has no such form, or the name has other characters than names have.
        """
        name, is_pair, path = text.partition("=")
        if not is_pair or not path:
            raise ConfigError(f"An adapter is NAME=FOLDER, such as legal=./adapters/legal; {text!r} is not.")
        check_adapter_name(name)
        return cls(name=name, path=Path(path).expanduser())  # shells leave the `~` of NAME=~/FOLDER as it is


def check_adapter_name(name: str) -> None:
    """Refuse a name that could not stand in a request, an address or a log line.

    Raises:
        ConfigError: it has other characters, or more than 64.
    """
    if _ADAPTER_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"An adapter cannot be called {name!r}; use 1 to 64 letters, digits and '._:-', a letter or digit first."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Which model to run, and with how much of the machine.

    Raises:
        ConfigError: a value is outside its range.
    """

    model_path: Path
    """A `.gguf` file or a folder with `config.json` and `.safetensors` files."""
    model_name: str
    """The name that requests use."""
    num_threads: int | None = None
    """Threads of the kernels; None: one for each core."""
    max_model_len: int | None = None
    """Prompt and answer together, in tokens; None: as many as the model was trained for, or as
    fit into memory."""
    yarn_factor: float | None = None
    """Stretch the context by this factor with YaRN; None: as the model's files say. Short texts suffer a little, so
    it is for those whose texts are longer than the model was trained for."""
    kv_cache_memory_bytes: int | None = None
    """Memory for keys and values; None: enough for four full contexts, at most a quarter of what is free."""
    max_num_seqs: int = 64
    """Answers that are generated at the same time; more wait."""
    max_num_waiting: int = 1024
    """Answers that may wait; more are refused."""
    max_num_batched_tokens: int = 512
    """Tokens one step computes: a long prompt is read in pieces of this size, beside the others' decoding."""
    repetition_window: int = 1024
    """An answer whose last so many tokens repeat one cycle of at most 128 is ended; 0: none is."""
    journal_path: Path | None = None
    """File that requests and digests of their answers are appended to, so that a session can be run again; it holds
    prompts. None: no journal."""
    block_size: int = 16
    """Tokens a KV block holds."""
    weight_format: WeightFormat = "stored"
    """`stored`: as the file has them; `int8`: matrices of floats rounded to int8 in groups of 32; `bfloat16`: all."""
    kv_cache_dtype: KVCacheDtype = "auto"
    """`auto`: float32 for float32 weights, else float16; `int8`: rounded in groups of 16, about half of float16."""
    activation_bits: Literal[8, 16] | None = None
    """How finely activations are rounded where they meet quantised weights; None: 16 for small models, 8 for others."""
    short_prompt_tokens: int = 0
    """Answers to prompts of at most this many tokens are computed at 16 bits, whatever `activation_bits` says."""
    isa: IsaName = "auto"
    """Instruction set of the kernels; `reference` is the readable numpy twin."""
    max_pending_grammars: int = 64
    """Different grammars that may wait to be compiled, each for half a second at most; more are refused."""
    speculation: Literal["ngram", "off"] = "ngram"
    """`ngram`: guess that text goes on as it did before, where that pays; never changes a result."""
    draft_model_path: Path | None = None
    """A small model of the same vocabulary that guesses instead; None: `speculation` says."""
    num_speculative_tokens: int = MAX_DRAFTS
    """Guesses of an answer that one step may hold; fewer are made where more would not pay."""
    enable_prefix_caching: bool = True
    """Whether what was computed for one prompt serves later ones that begin alike."""
    prefix_cache_disk_bytes: int = 4 << 30
    """Disk space for cached prefixes; 0: none are kept beyond the memory."""
    prefix_cache_dir: Path | None = None
    """Folder of cached prefixes; None: `kv_store.default_folder`."""
    prefix_cache_max_age_s: int = 7 * 86_400
    """What was not used for this long is removed from the disk."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that requests may name, each as `NAME=FOLDER`, the folder as PEFT saves it."""
    max_adapters: int = MAX_ADAPTERS
    """Adapters that may be loaded at the same time."""
    merged_adapter: Path | None = None
    """Folder of one adapter to add to the weights for good; None: the model as it is."""

    def __post_init__(self) -> None:
        """Check every choice and range."""
        for name, choices in (
            ("weight_format", get_args(WeightFormat)),
            ("kv_cache_dtype", get_args(KVCacheDtype)),
            ("isa", get_args(IsaName)),
            ("speculation", ("ngram", "off")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        if self.activation_bits not in (None, 8, 16):
            raise ConfigError(f"`activation_bits` is {self.activation_bits!r}; choose 8 or 16.")
        for name, low, high in (
            ("num_threads", 1, 1024),
            ("max_model_len", 1, 1 << 24),
            ("yarn_factor", 1, MAX_YARN_FACTOR),
            ("kv_cache_memory_bytes", 1 << 16, 1 << 50),
            ("short_prompt_tokens", 0, 1 << 24),
            ("max_num_seqs", 1, 4096),
            ("max_num_waiting", 0, 1 << 20),
            ("max_num_batched_tokens", 16, 1 << 16),
            ("block_size", 8, 256),
            ("prefix_cache_disk_bytes", 0, 1 << 50),
            ("prefix_cache_max_age_s", 1, 10 * 366 * 86_400),
            ("max_adapters", 0, 1024),
            ("num_speculative_tokens", 1, MAX_DRAFTS),
            ("max_pending_grammars", 1, 1 << 20),
        ):
            value: float | None = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"`{name}` is {value!r}; it must lie between {low} and {high}.")
        if self.repetition_window and not 2 * MAX_PERIOD <= self.repetition_window <= 1 << 20:
            raise ConfigError(
                f"`repetition_window` is {self.repetition_window}; it must be 0, which turns the guard off, or lie "
                f"between {2 * MAX_PERIOD} and {1 << 20}."
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"`max_num_batched_tokens` is {self.max_num_batched_tokens}, below `max_num_seqs` {self.max_num_seqs}: "
                "some answers would never get their token. Raise the first or lower the second."
            )
        names = [source.name for source in self.adapter_sources]
        if len(set(names)) < len(names) or len(names) > self.max_adapters:
            raise ConfigError(
                f"`adapters` names {', '.join(names)}; at most {self.max_adapters} (`max_adapters`) can be loaded, "
                "each under a name of its own."
            )

    @property
    def adapter_sources(self) -> tuple[AdapterSource, ...]:
        """The adapters to load at the start."""
        return tuple(AdapterSource.parse(text) for text in self.adapters)
