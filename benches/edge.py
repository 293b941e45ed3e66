"""Measure the edge: requests a second for `/v1/models`, with a key, SQLite and the audit log, as `wrk` counts them.

One JSON line: requests a second, the processor time that the server took for each (which a busy machine changes less),
and the latency as wrk saw it. Debian's package of wrk is `wrk`.

    python benches/edge.py --seconds 10 --repetitions 3
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "serving"))

from reliability.server import Server, serving

CONNECTIONS = 16


async def measure(server: Server, wrk: str, seconds: int) -> dict[str, float]:
    """Run wrk once."""
    process = psutil.Process(server.process.pid)
    before = process.cpu_times()
    command = [wrk, "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "--latency"]
    command += ["-H", f"Authorization: Bearer {server.key}", f"{server.url}/v1/models"]
    run = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    text = (await run.communicate())[0].decode()
    after = process.cpu_times()
    if "Non-2xx" in text:
        raise SystemExit(text)
    rate, total = float(_find(r"Requests/sec:\s+([\d.]+)", text)), int(_find(r"(\d+) requests in", text))
    spent_s = after.user + after.system - before.user - before.system
    return {"requests_a_second": rate, "cpu_us_a_request": spent_s / total * 1e6}


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(text)
    return found[1]


async def run(seconds: int, repetitions: int) -> dict[str, float]:
    """Return medians."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("no wrk here; Debian's package is `wrk`")
    async with serving() as server:
        await measure(server, wrk, 1)
        runs = [await measure(server, wrk, seconds) for _ in range(repetitions)]
    return {name: round(statistics.median(each[name] for each in runs), 1) for name in runs[0]}


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    measured = asyncio.run(run(arguments.seconds, arguments.repetitions))
    print(json.dumps(measured | {"connections": CONNECTIONS, "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
