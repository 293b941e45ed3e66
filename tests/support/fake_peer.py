"""A driver of an engine that has no model: fast, predictable, and broken in ways that its arguments ask for.

fake_peer.py [--refuses-to-load] [--dies-in-run N] [--spins]
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benches" / "peers"))

from driver import RefusalError, serve  # type: ignore[import-not-found]


class FakeDriver:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.num_runs = 0
        if options.spins:
            threading.Thread(target=self._spin, daemon=True).start()

    def load(self, path: str, num_threads: int) -> dict[str, object]:
        if self.options.refuses_to_load:
            raise RefusalError("this file is not to my taste")
        print("a library that prints where it should not")
        return {"engine": "fake", "version": f"1.0, {num_threads} threads", "weight_bytes_per_step": 1000}

    def run(self, prompts: list[list[int]], max_tokens: int) -> dict[str, object]:
        self.num_runs += 1
        if self.num_runs == self.options.dies_in_run:
            print("ASSERT(the last words)\n#42 _start ()", file=sys.stderr, flush=True)
            sys.exit(3)
        return {
            "prefill_s": 0.5,
            "decode_s": 0.25,
            "decode_tokens": len(prompts) * (max_tokens - 1),
            "cached_tokens": 0,
            "drafted_tokens": 0,
            "first_token_ids": [prompt[0] for prompt in prompts],
        }

    def score(self, windows: list[list[int]]) -> float:
        return float(sum(len(window) - 1 for window in windows))

    def _spin(self) -> None:
        while True:
            pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--refuses-to-load", action="store_true")
    parser.add_argument("--dies-in-run", type=int)
    parser.add_argument("--spins", action="store_true")
    serve(FakeDriver(parser.parse_args()))
