"""Time to the first token of a long prompt: cold, repeated, and after `kill -9` and a restart of the engine.

    python benches/prefix_cache.py [MODEL] [--tokens 2000] [--rounds 5] [--json]

Each round takes a fresh random prompt and an empty cache folder, so that nothing is warm by accident.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import EngineConfig
from qwenstack.engine.client import EngineClient
from qwenstack.hub.pull import locate

PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


async def first_token_s(client: EngineClient, prompt: list[int]) -> tuple[float, int, list[int]]:
    """Return the time to the first token, the prompt tokens that were not computed, and the answer."""
    began = time.perf_counter()
    first_s, num_cached = 0.0, 0
    tokens: list[int] = []
    async for delta in client.generate(prompt, PARAMS, request_id="bench"):
        if delta.token_ids and not tokens:
            first_s = time.perf_counter() - began
        tokens.extend(delta.token_ids)
        num_cached = max(num_cached, delta.num_cached_tokens)
    return first_s, num_cached, tokens


async def measure(path: Path, num_tokens: int, seed: int) -> dict[str, float]:
    """Run one round."""
    source = random.Random(seed)  # noqa: S311 - prompts, not secrets
    with tempfile.TemporaryDirectory() as folder:
        config = EngineConfig(model_path=path, model_name="bench", prefix_cache_dir=Path(folder) / "prefix")
        client = await EngineClient.start(config)
        prompt = [source.randrange(client.card.vocab_size) for _ in range(num_tokens)]
        await first_token_s(client, prompt[:8])  # weights and threads are warm
        cold_s, num_cached, tokens = await first_token_s(client, prompt)
        assert num_cached == 0
        repeated_s, _, again = await first_token_s(client, prompt)
        await asyncio.sleep(2)  # the writer is done long before
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        await client.close()
        client = await EngineClient.start(config)
        await first_token_s(client, [1] * 8)
        restarted_s, num_restored, after = await first_token_s(client, prompt)
        await client.close()
    assert tokens == again == after
    assert num_restored >= num_tokens - 32
    return {"cold_s": cold_s, "repeated_s": repeated_s, "restarted_s": restarted_s}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path = locate(options.model).path
    rounds = [asyncio.run(measure(path, options.tokens, seed)) for seed in range(options.rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    ratios = {
        name: statistics.median(one["cold_s"] / one[name] for one in rounds) for name in ("repeated_s", "restarted_s")
    }
    if options.json:
        sys.stdout.write(json.dumps({"tokens": options.tokens, "medians": medians, "ratios": ratios, "rounds": rounds}))
        sys.stdout.write("\n")
        return
    for name, seconds in medians.items():
        ratio = f"{ratios[name]:6.1f} x lower" if name in ratios else ""
        sys.stdout.write(f"{name:<12} {seconds * 1e3:9.1f} ms {ratio}\n")


if __name__ == "__main__":
    main()
