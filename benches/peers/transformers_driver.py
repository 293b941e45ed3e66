"""transformers behind the protocol of `driver.py`, on the weights of the same GGUF file, dequantised.

In bfloat16 where the processor multiplies it, else in float32, which is then three to six times as fast. The loop is
written out instead of `generate`, which costs a little more a token.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from driver import Loaded, Timed, serve

CPUINFO = Path("/proc/cpuinfo")


class TransformersDriver:
    """One model."""

    def load(self, path: str, num_threads: int) -> Loaded:
        """See `PeerDriver`."""
        torch.set_num_threads(num_threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        flags = CPUINFO.read_text().split() if CPUINFO.exists() else []
        dtype = torch.bfloat16 if {"avx512_bf16", "amx_bf16", "bf16"} & set(flags) else torch.float32
        file = Path(path)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype
        ).eval()
        embedding, head = self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight
        num_bytes = sum(weight.nbytes for weight in self.model.parameters())
        is_tied = embedding.data_ptr() == head.data_ptr()
        return {
            "engine": "transformers",
            "version": f"{transformers.__version__}, torch {torch.__version__}",
            "weight_bytes_per_step": num_bytes if is_tied else num_bytes - embedding.nbytes,
            "kv_bytes_per_token": self._kv_bytes_per_token(),
            "remark": str(dtype).removeprefix("torch."),
        }

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], max_tokens: int) -> Timed:
        """See `PeerDriver`; the prompts must be of equal length."""
        start = time.perf_counter()
        cache = transformers.DynamicCache(config=self.model.config)
        chosen = self._step(torch.tensor(prompts), cache)
        first_token_ids = chosen[:, 0].tolist()
        all_read = time.perf_counter()
        for _ in range(max_tokens - 1):
            chosen = self._step(chosen, cache)
        end = time.perf_counter()
        num_computed = cache.get_seq_length()
        return {
            "prefill_s": all_read - start,
            "decode_s": end - all_read,
            "decode_tokens": len(prompts) * (max_tokens - 1),
            "cached_tokens": num_computed - len(prompts[0]) - (max_tokens - 1),  # the cache began empty
            "drafted_tokens": 0,
            "first_token_ids": first_token_ids,
        }

    @torch.inference_mode()
    def score(self, windows: list[list[int]]) -> float:
        """See `PeerDriver`."""
        nll = 0.0
        for window in windows:
            ids = torch.tensor([window])
            logits = self.model(ids, use_cache=False).logits[0, :-1].float()
            nll += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        return nll

    def _kv_bytes_per_token(self) -> int:
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * self.model.dtype.itemsize

    def _step(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)


if __name__ == "__main__":
    serve(TransformersDriver())
