"""transformers in bfloat16 behind the protocol of `driver.py`, on the weights of the same GGUF file, dequantised.

The loop is written out instead of `generate`, which costs a little more a token.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from driver import Loaded, Timed, serve


class TransformersDriver:
    """One model in bfloat16."""

    def load(self, path: str, num_threads: int) -> Loaded:
        """See `PeerDriver`."""
        torch.set_num_threads(num_threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        file = Path(path)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.bfloat16
        ).eval()
        embedding, head = self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight
        num_bytes = sum(weight.nbytes for weight in self.model.parameters())
        is_tied = embedding.data_ptr() == head.data_ptr()
        return {
            "engine": "transformers",
            "version": f"{transformers.__version__}, torch {torch.__version__}",
            "weight_bytes_per_step": num_bytes if is_tied else num_bytes - embedding.nbytes,
            "remark": "bfloat16",
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

    def _step(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)


if __name__ == "__main__":
    serve(TransformersDriver())
