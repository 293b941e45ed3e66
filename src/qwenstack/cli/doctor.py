"""`qwenstack doctor`: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import dataclasses
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from qwenstack.cli.loading import model_cache
from qwenstack.cli.machine import Machine, describe_machine
from qwenstack.cli.options import AsJson, Assignments
from qwenstack.cli.output import print_json
from qwenstack.cli.serve import static_dir
from qwenstack.cli.settings import PROJECT_FILE, EngineSettings, ServerSettings, Settings, load_settings, user_file
from qwenstack.core.config import from_assignments, load_config
from qwenstack.core.errors import ConfigError, QwenStackError

_LEAST_MEMORY_BYTES = 1 << 30
"""The default model's weights, a context and the interpreter."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "warn"]
    found: str
    advice: str = ""
    """The next step, where `status` is `warn`."""


def doctor(*, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """Look at this machine and say what is ready and what is not."""
    settings, findings = read_settings(assignments)
    checks = [*examine(settings), findings]
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        sys.stdout.write("".join(map(_as_text, checks)))


def examine(settings: Settings) -> Iterator[Check]:
    """Look at everything, one after the other."""
    machine = describe_machine()
    yield Check(name="python", status="ok", found=f"{machine.python} ({sys.executable})")
    yield Check(name="platform", status="ok", found=machine.platform)
    yield Check(name="cpu", status="ok", found=f"{machine.cpu}: {' '.join(machine.cpu_flags) or 'no special flags'}")
    yield check_cores(machine)
    yield _guarded("kernels", lambda: check_kernels(settings))
    yield _guarded("self-test", lambda: check_self_test(settings))
    yield check_precision(settings.engine)
    available_bytes = _available_memory_bytes()
    yield check_memory(machine, available_bytes)
    yield check_bandwidth(settings, available_bytes)
    yield _guarded("models", lambda: check_models(settings))
    yield check_web_page(static_dir())
    yield check_port(settings.server)


def read_settings(assignments: Sequence[str]) -> tuple[Settings, Check]:
    """Return the settings, and what there is to say of them; where a file or a variable is wrong, those without any.

    Raises:
        ConfigError: an assignment itself is wrong.
    """
    files = [str(path) for path in (user_file(), PROJECT_FILE) if path.is_file()]
    found = ", ".join(files) or f"no file; yours would be {user_file()}"
    try:
        return load_settings(assignments).value, Check(name="settings", status="ok", found=found)
    except ConfigError as error:
        settings = load_config(Settings, from_assignments(assignments)).value
        advice = "Mend it: no other command starts before. What is said above holds for the settings without it"
        return settings, Check(name="settings", status="warn", found=str(error), advice=advice)


def check_cores(machine: Machine) -> Check:
    """Say how many threads can really run at the same time."""
    found = f"{machine.num_cores} cores, {machine.num_logical_cpus} threads"
    return Check(name="cores", status="ok", found=found)


def check_memory(machine: Machine, available_bytes: int) -> Check:
    """Compare the free memory with what the default model takes."""
    total = "" if machine.memory_bytes is None else f" of {machine.memory_bytes / 1e9:.1f} GB"
    found = f"{available_bytes / 1e9:.1f} GB free{total}"
    if available_bytes >= _LEAST_MEMORY_BYTES:
        return Check(name="memory", status="ok", found=found)
    return Check(
        name="memory",
        status="warn",
        found=found,
        advice="Close other programs, or use a small model: qwenstack chat smollm2-135m",
    )


def check_kernels(settings: Settings) -> Check:
    """Say which instruction set the kernels would use."""
    from qwenstack.engine.loading import num_cores
    from qwenstack.kernels import load_kernels, supported_isas

    chosen = load_kernels(settings.engine.num_threads or num_cores(), settings.engine.isa).name
    found = f"{chosen} (this CPU can: {', '.join(supported_isas())})"
    if "reference" in chosen:
        return Check(name="kernels", status="warn", found=found, advice="Install the compiled package: pip install .")
    return Check(name="kernels", status="ok", found=found)


def check_self_test(settings: Settings) -> Check:
    """Say whether the kernels compute right numbers here, and how long it took to find out."""
    from qwenstack.kernels import isas_to_try, self_test_of

    if settings.engine.isa == "reference":
        return Check(
            name="self-test", status="ok", found="not needed: `reference` is what the others are compared with"
        )
    failures: list[str] = []
    passed = "none computes right numbers, so numpy does, very slowly"
    for isa in isas_to_try(settings.engine.isa):
        result = self_test_of(isa)
        took = f"{result.duration_s * 1e3:.0f} ms"
        if not result.wrong:
            passed = f"{isa} computes all {result.num_operations} operations as numpy does ({took})"
            break
        failures.append(f"{isa} computes {', '.join(result.wrong)} wrongly ({took})")
    if not failures:
        return Check(name="self-test", status="ok", found=passed)
    advice = "Build the package again on this machine; if the finding stays, please report it with the line `cpu`"
    return Check(name="self-test", status="warn", found="; ".join([*failures, passed]), advice=advice)


def check_bandwidth(settings: Settings, available_bytes: int) -> Check:
    """Say how fast memory is read: a decoded token reads all weights once, so this bounds tokens a second."""
    from qwenstack.cli.bandwidth import measure_read_bandwidth
    from qwenstack.engine.loading import num_cores

    if available_bytes < _LEAST_MEMORY_BYTES:
        return Check(name="bandwidth", status="ok", found="not measured: that takes a large buffer")
    num_threads = settings.engine.num_threads or num_cores()
    readers = "1 thread reads" if num_threads == 1 else f"{num_threads} threads read"
    rate = measure_read_bandwidth(num_threads)
    return Check(name="bandwidth", status="ok", found=f"{readers} {rate / 1e9:.1f} GB/s of memory")


def check_precision(engine: EngineSettings) -> Check:
    """Say in which types a model would be computed."""
    activations = "as suits the model" if engine.activation_bits is None else f"{engine.activation_bits} bits"
    if engine.short_prompt_tokens:
        activations += f", 16 bits for prompts of at most {engine.short_prompt_tokens} tokens"
    found = f"weights {engine.weight_format}, keys and values {engine.kv_cache_dtype}, activations {activations}"
    return Check(name="precision", status="ok", found=found)


def check_models(settings: Settings) -> Check:
    """Say which models are on this machine."""
    cache = model_cache(settings.hub)
    names = [model.name for model in cache.models()]
    found = f"{', '.join(names) or 'none'} in {cache.path}"
    if names:
        return Check(name="models", status="ok", found=found)
    return Check(name="models", status="warn", found=found, advice="qwenstack pull auto")


def check_web_page(static_dir: Path) -> Check:
    """Say whether the chat page was built."""
    if (static_dir / "index.html").is_file():
        return Check(name="web page", status="ok", found=str(static_dir))
    return Check(name="web page", status="warn", found="not built; the API works without it", advice="make web")


def check_port(server: ServerSettings) -> Check:
    """Say whether the server could listen."""
    where = f"{server.host}:{server.port}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server.host, server.port))
    except OSError as error:
        advice = "Stop what uses it, or take another: qwenstack serve --port 8001"
        return Check(name="port", status="warn", found=f"{where} cannot be used: {error.strerror}", advice=advice)
    return Check(name="port", status="ok", found=f"{where} is free")


def _as_text(check: Check) -> str:
    line = f"{check.status:<5} {check.name:<9} {check.found}\n"
    return f"{line}{'':<15} next: {check.advice}\n" if check.advice else line


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A part that cannot even be looked at is a finding, not the end of the examination."""
    try:
        return check()
    except (QwenStackError, ImportError, OSError, ValueError) as error:
        advice = "make run installs what is missing"
        return Check(name=name, status="warn", found=f"cannot be used: {error}", advice=advice)


def _available_memory_bytes() -> int:
    from qwenstack.engine.memory import available_memory_bytes

    return available_memory_bytes()
