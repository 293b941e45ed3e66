"""llama.cpp and ik_llama.cpp behind the protocol of `driver.py`, through the lowest level of their Python packages.

    llama_driver.py [llama_cpp | ik_llama_cpp]

Batches are `llama_batch`es with a sequence for each stream. The likeliest token is found by numpy, which is faster than
the samplers of either.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import sys
import time
from typing import Any

import numpy as np
from driver import Loaded, RefusalError, Timed, serve

LOGICAL_BATCH = 2048
"""Tokens of one call; llama.cpp's default. It cuts them into 512 by itself."""
SCORED_ROWS = 512
"""Tokens whose logits are held at a time; those of 152,000 tokens take 311 MB."""


class LlamaCpp:
    """What differs between the two: this is llama.cpp."""

    package = "llama-cpp-python"
    engine = "llama.cpp"

    def __init__(self) -> None:
        """Import the library and silence it."""
        self.c = c = importlib.import_module("llama_cpp.llama_cpp")
        self._quiet = c.llama_log_callback(lambda *_: None)  # kept: the library holds a bare pointer
        c.llama_log_set(self._quiet, None)

    def set_context(self, params: Any) -> None:
        """Choose what a context should have beyond the defaults: nothing, they are llama.cpp's best."""
        params.no_perf = False

    def set_model(self, params: Any) -> None:
        """Choose how weights are loaded: as by default, which repacks what has faster layouts."""

    def clear(self, context: Any) -> None:
        """Forget all sequences."""
        self.c.llama_memory_clear(self.c.llama_get_memory(context), True)

    def take_counts(self, context: Any) -> tuple[int, int]:
        """Return the tokens computed as prompts, and one by one, since the last call."""
        counts = self.c.llama_perf_context(context)
        self.c.llama_perf_context_reset(context)
        return counts.n_p_eval, counts.n_eval


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp."""

    package = "ik-llama-cpp-python"
    engine = "ik_llama.cpp"

    def __init__(self) -> None:
        """Import the library; it cannot be silenced, and prints to standard error."""
        self.c = importlib.import_module("ik_llama_cpp._ctypes_api")

    def set_context(self, params: Any) -> None:
        """Choose what its makers advise for the CPU; with several sequences in a batch its flash attention aborts."""
        params.flash_attn = params.n_seq_max == 1

    def set_model(self, params: Any) -> None:
        """Repack weights while loading, which is off by default and makes decoding about a fifth faster."""
        params.repack_tensors = True
        params.use_mmap = False

    def clear(self, context: Any) -> None:
        """Forget all sequences."""
        self.c.llama_kv_cache_clear(context)

    def take_counts(self, context: Any) -> tuple[int, int]:
        """Return the tokens computed as prompts, and one by one, since the last call."""
        counts = self.c.llama_get_timings(context)
        self.c.llama_reset_timings(context)
        return counts.n_p_eval, counts.n_eval


class LlamaDriver:
    """One model; a context for each number of streams and length."""

    def __init__(self, library: LlamaCpp) -> None:
        """Take the library to use."""
        self.lib, self.c = library, library.c
        self.c.llama_backend_init()
        self.model: Any = None
        self.context: Any = None
        self.shape = (0, 0, False)

    def load(self, path: str, num_threads: int) -> Loaded:
        """See `PeerDriver`."""
        params = self.c.llama_model_default_params()
        params.n_gpu_layers = 0
        self.lib.set_model(params)
        self.model = self.c.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RefusalError(f"{self.lib.engine} cannot load this file")
        self.num_threads = num_threads
        self.vocab_size = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self.model))
        return {
            "engine": self.lib.engine,
            "version": f"{self.lib.package} {importlib.metadata.version(self.lib.package)}",
        }

    def run(self, prompts: list[list[int]], max_tokens: int) -> Timed:
        """See `PeerDriver`."""
        streams = range(len(prompts))
        context = self._context(len(prompts), max(map(len, prompts)) + max_tokens)
        batch = self.c.llama_batch_init(LOGICAL_BATCH, 0, 1)
        self.lib.take_counts(context)
        start = time.perf_counter()
        chosen = self._read(context, batch, prompts)
        all_read = time.perf_counter()
        first_token_ids = [chosen[stream] for stream in streams]
        lengths = [len(prompt) for prompt in prompts]
        for step in range(max_tokens - 1):
            rows = [(chosen[stream], lengths[stream] + step, stream, True) for stream in streams]
            self._decode(context, batch, rows)
            chosen = {stream: self._likeliest(context, stream) for stream in streams}
        end = time.perf_counter()
        self.c.llama_batch_free(batch)
        return {
            "prefill_s": all_read - start,
            "decode_s": end - all_read,
            "decode_tokens": len(prompts) * (max_tokens - 1),
            "cached_tokens": self._missing_tokens(context, sum(lengths) + len(prompts) * (max_tokens - 1)),
            "drafted_tokens": 0,
            "first_token_ids": first_token_ids,
        }

    def score(self, windows: list[list[int]]) -> float:
        """See `PeerDriver`."""
        nll = 0.0
        batch = self.c.llama_batch_init(LOGICAL_BATCH, 0, 1)
        for window in windows:
            context = self._context(1, len(window), every_row=True)
            for start in range(0, len(window) - 1, SCORED_ROWS):
                ids = window[start : start + SCORED_ROWS]
                self._decode(context, batch, [(token, start + i, 0, True) for i, token in enumerate(ids)])
                for row, target in enumerate(window[start + 1 : start + 1 + SCORED_ROWS]):
                    logits = self._logits(context, row).astype(np.float64)
                    peak = logits.max()
                    nll += float(peak + np.log(np.exp(logits - peak).sum()) - logits[target])
        self.c.llama_batch_free(batch)
        return nll

    def quantise(self, source: str, target: str, type_name: str) -> None:
        """See `PeerDriver`; `pure-` before a type leaves no tensor to llama.cpp's own choice of better ones."""
        is_pure, type_name = type_name.startswith("pure-"), type_name.removeprefix("pure-")
        file_type = getattr(self.c, f"LLAMA_FTYPE_MOSTLY_{type_name}", None)
        if file_type is None:
            raise RefusalError(f"{self.lib.engine} knows no type {type_name!r}")
        params = self.c.llama_model_quantize_default_params()
        params.ftype = file_type
        params.allow_requantize = True
        params.pure = is_pure
        if self.c.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
            raise RefusalError(f"{self.lib.engine} cannot make {type_name} of this file")

    def _context(self, num_streams: int, length: int, *, every_row: bool = False) -> Any:
        """Return an empty context, its cells shared evenly by its streams; it may give logits of every row."""
        length = -(-length // 256) * 256
        shape = (num_streams, length, every_row)
        if self.shape != shape:
            if self.context:
                self.c.llama_free(self.context)
            params = self.c.llama_context_default_params()
            params.n_ctx = num_streams * length
            params.n_seq_max = num_streams
            params.n_batch = LOGICAL_BATCH
            params.n_threads = params.n_threads_batch = self.num_threads
            if every_row and hasattr(params, "n_outputs_max_per_seq"):
                params.n_outputs_max_per_seq = 0  # no limit
            self.lib.set_context(params)
            self.context = self.c.llama_init_from_model(self.model, params)
            if not self.context:
                raise RefusalError(f"{self.lib.engine} has no room for {num_streams} streams of {length} tokens")
            self.shape = shape
        self.lib.clear(self.context)
        return self.context

    def _read(self, context: Any, batch: Any, prompts: list[list[int]]) -> dict[int, int]:
        """Compute all prompts; return the first token of each answer."""
        rows = [
            (token, position, stream, position == len(prompt) - 1)
            for stream, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        chosen: dict[int, int] = {}
        for start in range(0, len(rows), LOGICAL_BATCH):
            part = rows[start : start + LOGICAL_BATCH]
            self._decode(context, batch, part)
            for row, (_, _, stream, wants_logits) in enumerate(part):
                if wants_logits:
                    chosen[stream] = self._likeliest(context, row)
        return chosen

    def _decode(self, context: Any, batch: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(rows)
        for row, (token, position, stream, wants_logits) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = stream
            batch.logits[row] = wants_logits
        if status := self.c.llama_decode(context, batch):
            raise RefusalError(f"{self.lib.engine} failed with status {status}")

    def _logits(self, context: Any, row: int) -> np.ndarray:
        return np.ctypeslib.as_array(self.c.llama_get_logits_ith(context, row), (self.vocab_size,))

    def _likeliest(self, context: Any, row: int) -> int:
        return int(self._logits(context, row).argmax())

    def _missing_tokens(self, context: Any, num_tokens: int) -> int:
        """Return the tokens that were not computed, by the library's own counters; they say 1 where there was none."""
        return max(num_tokens - sum(self.lib.take_counts(context)), 0)


if __name__ == "__main__":
    serve(LlamaDriver(IkLlamaCpp() if sys.argv[1:] == ["ik_llama_cpp"] else LlamaCpp()))
