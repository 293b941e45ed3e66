"""Measure what the server costs: 16 streams over HTTP beside `LLM.generate` of the same prompts, taking turns.

Random token ids, fresh in every turn and the same for both; greedy, to a fixed length, without prefix cache and
speculation. The client reads raw sockets, so that what is measured is the server. One JSON line: tokens a second of
both, the median of the ratios of the pairs, and the smallest and largest.

    python benches/http_overhead.py qwen2.5-coder-0.5b --pairs 7
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from statistics import median

import httpx
import numpy as np

from qwenstack import LLM, SamplingParams

READY_TIMEOUT_S = 120
OFF = ("engine.enable_prefix_caching=false", "engine.speculation=off", "server.admin_port=off")


@contextlib.contextmanager
def serving(model: str, num_threads: int) -> Iterator[int]:
    """Run the server with its database; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = [*OFF, f"engine.num_threads={num_threads}", f"storage.url=sqlite:///{folder}/q.db"]
        command = [sys.executable, "-m", "qwenstack", "serve", model, "--port", str(port)]
        with subprocess.Popen(
            [*command, *(f"--set={setting}" for setting in settings)], stderr=subprocess.PIPE
        ) as server:
            try:
                wait_until_ready(f"http://127.0.0.1:{port}/readyz")
                yield port
            finally:
                server.terminate()
                server.communicate()


def wait_until_ready(url: str) -> None:
    """Return when the address answers."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == HTTPStatus.OK:
                return
        time.sleep(0.05)
    raise SystemExit("the server does not become ready")


async def stream(port: int, prompt: Sequence[int], max_tokens: int) -> int:
    """Read one stream to its end; return its completion tokens as the server counted them."""
    body = {
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    answer = await reader.read(-1)
    writer.close()
    last = [line for line in answer.split(b"\n") if line.startswith(b"data: {")][-1]
    usage = json.loads(last.removeprefix(b"data: "))["usage"]
    return usage["completion_tokens"]


async def over_http(port: int, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
    """Run all streams at once; return tokens a second."""
    started = time.perf_counter()
    counts = await asyncio.gather(*(stream(port, prompt, max_tokens) for prompt in prompts))
    if set(counts) != {max_tokens}:
        raise SystemExit(f"streams ended early: {counts}")
    return sum(counts) / (time.perf_counter() - started)


def offline(llm: LLM, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
    """Generate the same; return tokens a second."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    started = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - started)


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    llm = LLM(arguments.model, enable_prefix_caching=False, speculation="off", num_threads=arguments.threads)
    rng = np.random.default_rng()
    http: list[float] = []
    direct: list[float] = []
    with serving(arguments.model, arguments.threads) as port:
        for turn in range(arguments.pairs + 1):
            prompts = rng.integers(1000, 50_000, (arguments.streams, arguments.prompt_tokens)).tolist()
            first, second = (1, 0) if turn % 2 else (0, 1)
            measured = {}
            for side in (first, second):
                if side:
                    measured["http"] = asyncio.run(over_http(port, prompts, arguments.max_tokens))
                else:
                    measured["direct"] = offline(llm, prompts, arguments.max_tokens)
            if turn:  # the first turn warms up
                http.append(measured["http"])
                direct.append(measured["direct"])
    ratios = [one / other for one, other in zip(http, direct, strict=True)]
    line = {
        "streams": arguments.streams,
        "http_tokens_per_second": round(median(http), 1),
        "direct_tokens_per_second": round(median(direct), 1),
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
