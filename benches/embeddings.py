"""Measure how many texts a second the embedding model of the package takes, by length and by threads.

One JSON line for each case, the median of the repetitions, through the process that the server uses: counting, messages
and vectors included.

    python benches/embeddings.py --repetitions 3
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

from qwenstack.retrieval import e5_embedder

SENTENCE = "How do I reset the password of my account? 如何重置我的密码？"
CASES = {"query": (1, 1), "sentences": (1, 64), "paragraphs": (8, 16)}
"""By name: how often the sentence stands in a text, and how many texts a request has."""


async def measure(num_threads: int, repetitions: int) -> list[dict[str, object]]:
    """Run every case with so many threads."""
    embedder = e5_embedder(num_threads=num_threads)
    started = time.perf_counter()
    await embedder.embed(await embedder.prepare(["start"]))
    first_s = time.perf_counter() - started
    lines: list[dict[str, object]] = []
    for name, (length, num_texts) in CASES.items():
        inputs = [f"{index}. " + SENTENCE * length for index in range(num_texts)]
        seconds: list[float] = []
        num_tokens = 0
        for _ in range(repetitions):
            started = time.perf_counter()
            prepared = await embedder.prepare(inputs)
            await embedder.embed(prepared)
            seconds.append(time.perf_counter() - started)
            num_tokens = sum(each.num_tokens for each in prepared)
        middle = statistics.median(seconds)
        lines.append(
            {
                "case": name,
                "threads": num_threads,
                "texts": num_texts,
                "tokens_per_text": num_tokens // num_texts,
                "texts_per_second": round(num_texts / middle, 1),
                "tokens_per_second": round(num_tokens / middle),
                "spread": [round(num_texts / max(seconds), 1), round(num_texts / min(seconds), 1)],
                "first_request_s": round(first_s, 2),
            }
        )
    await embedder.close()
    return lines


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    for num_threads in arguments.threads:
        for line in asyncio.run(measure(num_threads, arguments.repetitions)):
            print(json.dumps(line))


if __name__ == "__main__":
    main()
