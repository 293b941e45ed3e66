"""Measure how long `qwenstack serve` takes until `/readyz` answers, warm: model in the cache, files in memory.

One JSON line a command, commands taking turns, so that a build can be compared with another.

    python benches/readiness.py --commands .venv/bin/qwenstack ../before/.venv/bin/qwenstack
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import socket
import subprocess
import tempfile
import time
from collections import defaultdict
from http import HTTPStatus
from statistics import median

import httpx

TIMEOUT_S = 120


def seconds_until_ready(command: str, model: str, url: str) -> float:
    """Start a server and stop it as soon as it is ready; return how long that took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    arguments = [*shlex.split(command), "serve", model, "--port", str(port)]
    if url:
        arguments += ["--set", f"storage.url={url}"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE) as server:
        try:
            while time.perf_counter() - started < TIMEOUT_S:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == HTTPStatus.OK:
                        return time.perf_counter() - started
                time.sleep(0.01)
            raise SystemExit(f"{command} does not become ready")
        finally:
            server.terminate()
            server.communicate()


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", default=["qwenstack"])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--without-storage", nargs="*", default=[], help="commands of builds that have no database")
    arguments = parser.parse_args()
    measured: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.repetitions + 1):
            for number, command in enumerate([*arguments.commands, *arguments.without_storage]):
                url = "" if command in arguments.without_storage else f"sqlite:///{folder}/{number}.db"
                seconds = seconds_until_ready(command, arguments.model, url)
                if turn:  # the first warms up
                    measured[command].append(seconds)
    for command, seconds in measured.items():
        line = {
            "command": command,
            "median_s": round(median(seconds), 2),
            "all_s": [round(each, 2) for each in seconds],
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
