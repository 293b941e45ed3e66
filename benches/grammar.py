"""What a grammar costs a stream: decode speed with and without one, in turns, one stream, speculation off.

    python benches/grammar.py [MODEL] [--pairs 10] [--tokens 96] [--temperature 0] [--json]

Each grammar is compared on a prompt that it suits, as users would; the ratio is that of the times per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from qwenstack.core.grammar import Grammar
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM

PLAIN = RequestOptions(speculation=False)
SCHEMA = {
    "type": "array",
    "minItems": 20,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
        "required": ["name", "age", "city"],
        "additionalProperties": False,
    },
}
CASES = {
    "json_schema": (Grammar(kind="json_schema", source=json.dumps(SCHEMA)), "Write a JSON list of twenty people."),
    "regex": (
        Grammar(kind="regex", source=r"(- [A-Z][a-z ]+\n){30}"),
        "List thirty fruits, each on a line after '- '.",
    ),
    "python": (Grammar(kind="python"), "Write a Python module with quick sort, merge sort and heap sort. Code alone."),
}


def seconds_a_token(llm: LLM, prompt: str, params: SamplingParams) -> float:
    """Return the time between tokens, the first one left out."""
    times: list[float] = []
    num_tokens = 0
    for delta in llm.stream_chat([{"role": "user", "content": prompt}], params, options=PLAIN):
        if delta.num_generated_tokens:
            times.append(time.perf_counter())
            num_tokens += delta.num_generated_tokens
    return (times[-1] - times[0]) / (num_tokens - 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    llm = LLM(options.model, max_model_len=2048, speculation="off", prefix_cache_disk_bytes=0)
    free = SamplingParams(temperature=options.temperature, seed=1, max_tokens=options.tokens, ignore_eos=True)
    report: dict[str, object] = {}
    for name, (grammar, prompt) in CASES.items():
        bound = SamplingParams(temperature=options.temperature, seed=1, max_tokens=options.tokens, grammar=grammar)
        seconds_a_token(llm, prompt, bound)  # compiled and warm
        pairs = [
            (seconds_a_token(llm, prompt, free), seconds_a_token(llm, prompt, bound)) for _ in range(options.pairs)
        ]
        ratios = sorted(with_grammar / without for without, with_grammar in pairs)
        report[name] = {
            "ms_a_token": statistics.median(without for without, _ in pairs) * 1e3,
            "ms_a_token_with_grammar": statistics.median(with_grammar for _, with_grammar in pairs) * 1e3,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
        if not options.json:
            sys.stdout.write(
                f"{name:<12} {report[name]['ms_a_token']:7.2f} ms a token, with the grammar x"
                f" {report[name]['ratio']:.4f} (quartiles {ratios[len(ratios) // 4]:.3f}"
                f" to {ratios[-1 - len(ratios) // 4]:.3f})\n"
            )
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
