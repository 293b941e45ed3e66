"""OpenVINO GenAI behind the protocol of `driver.py`; it reads GGUF files itself.

Its continuous batching, which is its own default on the CPU, step by step, with the prefix cache switched off.
"""

from __future__ import annotations

import time

import numpy as np
import openvino
import openvino_genai
from driver import Loaded, Timed, serve

CACHE_GB = 1
"""Keys and values of more tokens than any workload has at a time."""


class OpenVinoDriver:
    """One pipeline."""

    def load(self, path: str, num_threads: int) -> Loaded:
        """See `PeerDriver`."""
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = 1 << 16
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": num_threads}
        )
        return {
            "engine": "openvino",
            "version": f"openvino-genai {openvino_genai.__version__}",
            "remark": "8-bit activations",
        }

    def run(self, prompts: list[list[int]], max_tokens: int) -> Timed:
        """See `PeerDriver`."""
        config = _greedy(max_tokens)
        inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        start = time.perf_counter()
        handles = [self.pipeline.add_request(index, ids, config) for index, ids in enumerate(inputs)]
        while self.pipeline.has_non_finished_requests() and not all(handle.can_read() for handle in handles):
            self.pipeline.step()
        all_read = time.perf_counter()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        end = time.perf_counter()
        answers = [list(handle.read_all()[0].generated_ids) for handle in handles]
        return {
            "prefill_s": all_read - start,
            "decode_s": end - all_read,
            "decode_tokens": sum(len(answer) - 1 for answer in answers),
            "cached_tokens": None,
            "drafted_tokens": None,
            "first_token_ids": [answer[0] for answer in answers],
        }

    def score(self, windows: list[list[int]]) -> float:
        """See `PeerDriver`."""
        config = _greedy(1)
        config.echo = True  # the prompt comes back before the answer, with what each token was worth
        config.logprobs = 1
        nll = 0.0
        for window in windows:
            handle = self.pipeline.add_request(0, openvino.Tensor(np.array([window], np.int64)), config)
            while self.pipeline.has_non_finished_requests():
                self.pipeline.step()
            nll -= sum(handle.read_all()[0].generated_log_probs[1 : len(window)])
        return nll


def _greedy(max_tokens: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


if __name__ == "__main__":
    serve(OpenVinoDriver())
