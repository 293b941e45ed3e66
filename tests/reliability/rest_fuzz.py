"""Schemathesis over the server's own description: no failure, no answer that is not described, no door left open."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reliability.connection import Connection
from reliability.server import Server, serving
from reliability.verdict import Bar, Findings, Row, RowSkipped

CONFIGURATION = """
[checks.positive_data_acceptance]
# A description cannot say everything: lengths in tokens, fields that go together, numbers that fit the context.
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "413", "429", "5xx"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413", "415", "422", "429", "5xx"]
"""
_FAILURES = re.compile(r"^\s*❌ (ST\d+ .*): (\d+)$", re.MULTILINE)
_CASES = re.compile(r"(\d+) generated")
_SHOWN_CHARS = 6000


@dataclass(frozen=True, slots=True, kw_only=True)
class RestFuzz:
    """Examples for each operation and kind of caller, and where they stop."""

    examples: int
    phases: str = "examples,coverage,fuzzing,stateful"
    most_seconds: int
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzzed:
    """What came of one kind of caller."""

    status: int
    text: str

    @property
    def num_cases(self) -> int:
        """Requests that were made up."""
        found = _CASES.search(self.text)
        return int(found[1]) if found else 0

    @property
    def failures(self) -> Mapping[str, int]:
        """Kinds of failures, each with how many."""
        return Counter({kind: int(count) for kind, count in _FAILURES.findall(self.text)})


async def fuzz_rest(plan: RestFuzz) -> Findings:
    """F4."""
    program = shutil.which("schemathesis", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise RowSkipped("no schemathesis here; it comes with the extra `dev`")
    seed = random.randrange(1 << 32) if plan.seed is None else plan.seed
    async with serving(engine="toy") as server:
        before = await server.census()
        document = await read_document(server)
        runs = {
            who: await run_schemathesis(program, server, document, headers, plan, seed)
            for who, headers in {"anonymous": [], "user": ["-H", f"Authorization: Bearer {server.key}"]}.items()
        }
        let_in = await doors_that_are_open(server, document)
        after = await server.census()
        log = server.log
    complaints = [run.text[:_SHOWN_CHARS] for run in runs.values() if run.status]
    return Findings(
        bars=[
            *(Bar(name=f"findings as {who}", value=_count(run), at_most=0) for who, run in runs.items()),
            Bar(name="requests", value=min(run.num_cases for run in runs.values()), at_least=100),
            Bar(name="operations open to anonymous callers that need a key", value=len(let_in), at_most=0),
            Bar(name="engine's process changed", value=after["engine_pid"] != before["engine_pid"], at_most=0),
            Bar(name="failures in the log", value=log.count("failed:"), at_most=0),
        ],
        figures={"examples": plan.examples, "seed": seed, "complaints": "\n".join(complaints)},
    )


def _count(run: Fuzzed) -> int:
    found = sum(run.failures.values())
    return found or (1 if run.status else 0)


async def read_document(server: Server) -> Mapping[str, Mapping[str, Mapping[str, object]]]:
    """Return the server's description."""
    connection = await Connection.open(server)
    answer = await connection.ask("GET", "/openapi.json", key=server.key)
    await connection.close()
    return answer.json()


async def run_schemathesis(
    program: str, server: Server, document: object, headers: Sequence[str], plan: RestFuzz, seed: int
) -> Fuzzed:
    """Run it as one kind of caller."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "openapi.json").write_text(json.dumps(document))
        (folder / "schemathesis.toml").write_text(CONFIGURATION)
        command = [program, "--config-file", str(folder / "schemathesis.toml"), "run", str(folder / "openapi.json")]
        command += ["--url", server.url, "--checks", "all", "--phases", plan.phases, "--no-color", "--no-shrink"]
        command += ["--max-examples", str(plan.examples), "--seed", str(seed), "--continue-on-failure"]
        command += ["--generation-database", "none", "--suppress-health-check", "all", *headers]
        command += ["--max-failures", "50", "--warnings", "off", "--max-time", str(plan.most_seconds)]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        assert process.stdout is not None
        text = (await process.stdout.read()).decode(errors="replace")
        return Fuzzed(status=await process.wait(), text=text)


async def doors_that_are_open(
    server: Server, document: Mapping[str, Mapping[str, Mapping[str, object]]]
) -> Sequence[str]:
    """Call every operation that is described to need a key, without one; return those that do not answer 401."""
    let_in: list[str] = []
    connection = await Connection.open(server)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "security" not in operation:
                continue
            body = {} if method == "post" else None
            answer = await connection.ask(method.upper(), path.replace("{", "").replace("}", ""), body=body)
            if answer.status != 401:
                let_in.append(f"{method.upper()} {path}: {answer.status}")
    await connection.close()
    return let_in


F4 = Row(
    id="F4",
    claim="schemathesis, all checks, without a key and with one: no failure, no answer that is not described",
    sizes={
        "ci": RestFuzz(examples=5, phases="examples,fuzzing,stateful", most_seconds=30),
        "long": RestFuzz(examples=200, most_seconds=900),
    },
    run=fuzz_rest,
)
