"""qwenstack's own engine behind the protocol of `driver.py`, so that it is measured exactly as the others are."""

from __future__ import annotations

import time
from pathlib import Path

from driver import Loaded, RefusalError, Timed, serve

import qwenstack
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import EngineConfig
from qwenstack.engine.engine import Engine
from qwenstack.engine.loading import load_model

NOTHING_SHARED = RequestOptions(prefix_cache=False, speculation=False)


class QwenstackDriver:
    """Without a speculator, without a disk tier, and with requests that may not look into the prefix cache."""

    def load(self, path: str, num_threads: int) -> Loaded:
        """See `PeerDriver`."""
        config = EngineConfig(
            model_path=Path(path), model_name="bench", num_threads=num_threads, speculation="off", repetition_window=0
        )
        model = load_model(config)
        self.engine = Engine(model)
        return {
            "engine": "qwenstack",
            "version": f"{qwenstack.__version__}, {model.decoder.kernels.name}",
            "remark": f"{model.precision.activation_bits}-bit activations, {model.kv_cache.dtype_name} keys and values",
        }

    def run(self, prompts: list[list[int]], max_tokens: int) -> Timed:
        """See `PeerDriver`."""
        before = self.engine.stats()
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        start = time.perf_counter()
        for index, prompt in enumerate(prompts):
            self.engine.add_request(str(index), prompt, params, NOTHING_SHARED)
        first: dict[str, int] = {}
        all_read, decode_tokens = start, 0
        while self.engine.has_work:
            deltas = self._step()
            if len(first) == len(prompts):
                decode_tokens += sum(len(delta.token_ids) for delta in deltas)
                continue
            for delta in deltas:
                first.setdefault(delta.request_id, delta.token_ids[0])
            all_read = time.perf_counter()
        end = time.perf_counter()
        after = self.engine.stats()
        return {
            "prefill_s": all_read - start,
            "decode_s": end - all_read,
            "decode_tokens": decode_tokens,
            "cached_tokens": after.prefix_cache_hits - before.prefix_cache_hits,
            "drafted_tokens": after.num_draft_tokens - before.num_draft_tokens,
            "first_token_ids": [first[str(index)] for index in range(len(prompts))],
        }

    def score(self, windows: list[list[int]]) -> float:
        """See `PeerDriver`."""
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
        nll = 0.0
        for window in windows:
            self.engine.add_request("score", window, params, NOTHING_SHARED)
            while self.engine.has_work:
                for delta in self._step():
                    nll -= sum(scored.logprob for scored in delta.prompt_logprobs or () if scored is not None)
        return nll

    def _step(self) -> list[OutputDelta]:
        deltas = self.engine.step()
        for delta in deltas:
            if delta.finish_reason == "error":
                raise RefusalError(delta.error or "the computation failed")
        return deltas


if __name__ == "__main__":
    serve(QwenstackDriver())
