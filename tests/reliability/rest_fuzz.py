"""Schemathesis over the descriptions of both applications: no failure, no answer that is not described, no open door.

What an administrator does changes who may come in, so it goes last, with the key of the file, which nobody can revoke.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reliability.connection import Connection
from reliability.server import TESTS, Server, serving
from reliability.verdict import Bar, Findings, Row, RowSkipped

CONFIGURATION = """
[checks.positive_data_acceptance]
# A description cannot say everything: lengths in tokens, fields that go together, numbers that fit the context.
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "413", "429", "5xx"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413", "415", "422", "429", "5xx"]
"""
_FAILURES = re.compile(r"^\s*(?:❌|🚫) (?!Schema Error)(\S.*): (\d+)$", re.MULTILINE)
_CASES = re.compile(r"(\d+) generated")
_NOT_MADE = re.compile(r"^_+ [A-Z]+ (\S+) _+\nSchema Error$", re.MULTILINE)
"""The generator's own failure: for some seeds it finds no array with the elements that it wants to break a rule by."""
_MOST_SEEDS = 4
_SHOWN_CHARS = 6000
_ADAPTERS = ("legal", "medical")
_ADAPTER_PATHS = (("AdapterRequest", "path"), ("LoadLoraRequest", "lora_path"))

Document = Mapping[str, Any]
"""An OpenAPI document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestFuzz:
    """Examples for each operation and kind of caller, and where they stop."""

    examples: int
    phases: str = "examples,coverage,fuzzing,stateful"
    most_seconds: int | None = None
    """Fuzzing and links go on until this time is spent; None: each once."""
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, at which door, and what the door is described to do."""

    name: str
    server: Server
    document: Document
    key: str = ""
    least_examples: int = 1
    """For each operation, however small the plan is."""
    forgets_nothing: bool = False
    """Whether what it removes goes on being described: a revoked key stays in the list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzzed:
    """What came of one kind of caller."""

    status: int
    text: str

    @property
    def num_cases(self) -> int:
        """Requests that were made up."""
        return sum(map(int, _CASES.findall(self.text)))

    @property
    def failures(self) -> Mapping[str, int]:
        """Kinds of failures, each with how many."""
        return Counter({kind: int(count) for kind, count in _FAILURES.findall(self.text)})

    @property
    def paths_not_fuzzed(self) -> Sequence[str]:
        """Paths for which no requests, or not all, could be made up."""
        return sorted(set(_NOT_MADE.findall(self.text)))


async def fuzz_rest(plan: RestFuzz) -> Findings:
    """F4."""
    program = shutil.which("schemathesis", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise RowSkipped("no schemathesis here; it comes with the extra `dev`")
    seed = random.randrange(1 << 32) if plan.seed is None else plan.seed
    with tempfile.TemporaryDirectory() as folder:
        for name in _ADAPTERS:
            (Path(folder) / name).mkdir()
        options = {"adapters_folder": folder}
        async with serving(engine="toy", server_options=options, has_administration=True) as server:
            before = await server.census()
            callers = await all_callers(server)
            let_in = [
                *await doors_that_are_open(callers["anonymous"], refusal=401),
                *await doors_that_are_open(callers["stranger to the administration"], refusal=401),
                *await doors_that_are_open(callers["user at the administration"], refusal=403),
            ]
            *others, administrator = callers.values()
            found = await asyncio.gather(*(run_schemathesis(program, caller, plan, seed) for caller in others))
            found.append(await run_schemathesis(program, administrator, plan, seed))
            runs = dict(zip(callers, found, strict=True))
            let_in += await doors_that_are_open(callers["anonymous"], refusal=401)
            let_in += await doors_that_are_open(callers["stranger to the administration"], refusal=401)
            server.num_audited()
            after = await server.census()
            log = server.log
    complaints = [run.text[:_SHOWN_CHARS] for run in runs.values() if run.status]
    return Findings(
        bars=[
            *(Bar(name=f"findings as {who}", value=_count(run), at_most=0) for who, run in runs.items()),
            Bar(name="requests", value=min(run.num_cases for run in runs.values()), at_least=14),
            Bar(name="operations open to callers that they are closed to", value=len(let_in), at_most=0),
            Bar(name="engine's process changed", value=after["engine_pid"] != before["engine_pid"], at_most=0),
            Bar(name="failures in the log", value=log.count("failed:"), at_most=0),
        ],
        figures={"examples": plan.examples, "seed": seed, "complaints": "\n".join([*let_in, *complaints])},
    )


def _count(run: Fuzzed) -> int:
    found = sum(run.failures.values())
    return found or (1 if run.status else 0)


async def all_callers(server: Server) -> Mapping[str, Caller]:
    """Return the kinds of callers in the order in which they may ask."""
    inside = server.administration
    public, administration = await read_document(server), await read_document(inside)
    closed = without_successes(administration)
    callers = (
        Caller(name="anonymous", server=server, document=public),
        Caller(name="user", server=server, document=public, key=server.key, least_examples=2),
        Caller(name="stranger to the administration", server=inside, document=closed, least_examples=2),
        Caller(name="user at the administration", server=inside, document=closed, key=server.key, least_examples=2),
        Caller(
            name="administrator",
            server=inside,
            document=with_adapters(administration),
            key=inside.key,
            least_examples=8,
            forgets_nothing=True,
        ),
    )
    return {caller.name: caller for caller in callers}


async def read_document(server: Server) -> Document:
    """Return the server's description."""
    connection = await Connection.open(server)
    answer = await connection.ask("GET", "/openapi.json", key=server.key)
    await connection.close()
    assert answer.status == 200, answer.body
    return answer.json()


def without_successes(document: Document) -> Document:
    """Return a description to which every answer but a refusal is a failure: for those who may do nothing."""
    closed = copy.deepcopy(document)
    for operations in closed["paths"].values():
        for operation in operations.values():
            operation["responses"] = {
                status: answer for status, answer in operation["responses"].items() if status.startswith("4")
            }
    return closed


def with_adapters(document: Document) -> Document:
    """Return a description whose requests for adapters name, half of the time, one that is there."""
    known = copy.deepcopy(document)
    for schema, field in _ADAPTER_PATHS:
        path = known["components"]["schemas"][schema]["properties"][field]
        known["components"]["schemas"][schema]["properties"][field] = {"anyOf": [{"enum": list(_ADAPTERS)}, path]}
    return known


async def run_schemathesis(program: str, caller: Caller, plan: RestFuzz, seed: int) -> Fuzzed:
    """Run it as one kind of caller, and with other seeds where it could not make up its requests."""
    run = await run_once(program, caller, plan, seed)
    paths, text = run.paths_not_fuzzed, run.text
    for number in range(1, _MOST_SEEDS):
        if not paths:
            break
        run = await run_once(program, caller, replace(plan, most_seconds=None), seed + number, paths=paths)
        paths, text = run.paths_not_fuzzed, text + run.text
    return Fuzzed(status=run.status, text=text)


async def run_once(program: str, caller: Caller, plan: RestFuzz, seed: int, *, paths: Sequence[str] = ()) -> Fuzzed:
    """Run it as one kind of caller; with `paths`, over these alone."""
    headers = ["-H", f"Authorization: Bearer {caller.key}"] if caller.key else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "openapi.json").write_text(json.dumps(caller.document))
        (folder / "schemathesis.toml").write_text(CONFIGURATION)
        command = [program, "--config-file", str(folder / "schemathesis.toml"), "run", str(folder / "openapi.json")]
        command += ["--url", caller.server.url, "--checks", "all", "--phases", plan.phases, "--no-color", "--no-shrink"]
        command += [
            "--max-examples",
            str(max(plan.examples, caller.least_examples)),
            "--seed",
            str(seed),
            "--continue-on-failure",
        ]
        command += ["--generation-database", "none", "--suppress-health-check", "all", *headers]
        command += ["--max-failures", "50", "--warnings", "off"] + (
            ["--max-time", str(plan.most_seconds)] if plan.most_seconds else []
        )
        command += ["--exclude-checks", "use_after_free"] if caller.forgets_nothing else []
        command += [word for path in paths for word in ("--include-path", path)]
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "reliability.made_up_requests", "PYTHONPATH": str(TESTS)},
        )
        assert process.stdout is not None
        text = (await process.stdout.read()).decode(errors="replace")
        return Fuzzed(status=await process.wait(), text=text)


async def doors_that_are_open(caller: Caller, *, refusal: int) -> Sequence[str]:
    """Call every operation that is described to need a key; return those that do not answer with this refusal."""
    let_in: list[str] = []
    connection = await Connection.open(caller.server)
    for path, operations in caller.document["paths"].items():
        for method, operation in operations.items():
            if "security" not in operation:
                continue
            target, body = path.replace("{", "").replace("}", ""), {} if method == "post" else None
            answer = await connection.ask(method.upper(), target, key=caller.key, body=body)
            if answer.status != refusal:
                let_in.append(f"{caller.name}: {method.upper()} {path}: {answer.status}")
    await connection.close()
    return let_in


F4 = Row(
    id="F4",
    claim=(
        "schemathesis, all checks, without a key and with one, and over the administration as stranger, user and "
        "administrator: no failure, no answer that is not described, no open door"
    ),
    sizes={
        "ci": RestFuzz(examples=1, phases="examples,fuzzing,stateful"),
        "long": RestFuzz(examples=200, most_seconds=900),
    },
    run=fuzz_rest,
)
