"""Measure what the kernels' self-test adds to the start of an engine: the first of a process, and once it is warm.

One JSON line for each instruction set of this machine. The budget is 50 ms for the first one, in all operations.

    python benches/self_test.py --processes 10
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median

from qwenstack.kernels import Isa, ReferenceKernels, supported_isas
from qwenstack.kernels.native import NativeKernels
from qwenstack.kernels.self_test import run_self_test

_WARM_ROUNDS = 5


def measure(isa: Isa) -> dict[str, float]:
    """Return milliseconds in this process, which has computed nothing before."""
    native, twin = NativeKernels(1, isa), ReferenceKernels()
    cpu_start = time.process_time()
    first = run_self_test(native, twin)
    first_cpu_s = time.process_time() - cpu_start
    warm = [run_self_test(native, twin).duration_s for _ in range(_WARM_ROUNDS)]
    return {"first_ms": first.duration_s * 1e3, "first_cpu_ms": first_cpu_s * 1e3, "warm_ms": min(warm) * 1e3}


def main() -> None:
    """Print one JSON line for each instruction set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--measure", metavar="ISA", help="measure once, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(arguments.measure)) + "\n")
        return
    for isa in supported_isas():
        command = [sys.executable, __file__, "--measure", isa]
        runs = [
            json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            for _ in range(arguments.processes)
        ]
        medians = {name: round(median(run[name] for run in runs), 1) for name in runs[0]}
        sys.stdout.write(json.dumps({"isa": isa, "processes": len(runs), **medians}) + "\n")


if __name__ == "__main__":
    main()
