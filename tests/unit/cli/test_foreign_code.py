"""Nothing that comes from outside is run as a program: no source can, and no option asks for it."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

import qwenstack
from qwenstack.cli.app import build_app
from qwenstack.cli.chat.conversation import COMMANDS
from qwenstack.cli.settings import Settings
from qwenstack.engine import EngineConfig
from qwenstack.engine.llm import EngineOptions
from qwenstack.serving import ServeConfig

SOURCES = Path(qwenstack.__file__).parent
REMOTE_CODE = ("remote_code", "auto_map", "automodel", "autotokenizer", "autoconfig", "from_pretrained")
RUNS_TEXT = frozenset({"exec", "eval", "compile", "__import__", "execfile"})
LOADS_FILES = frozenset({"spec_from_file_location", "run_path", "run_module", "SourceFileLoader", "exec_module"})
STARTS_PROCESSES = frozenset(
    {"Popen", "create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "subprocess_shell", "system"}
    | {"popen", "check_output", "check_call", "getoutput", "getstatusoutput", "posix_spawn", "posix_spawnp", "fork"}
    | {"forkpty", *(f"{kind}{ends}" for kind in ("exec", "spawn") for ends in ("l", "le", "lp", "v", "ve", "vp"))}
)
WHO_STARTS_PROCESSES = {
    "core/worker_process.py": "our own workers, `python -m qwenstack…`",
    "engine/grammar/checker.py": "a fork of itself for each grammar",
    "engine/grammar/checker_process.py": "our own process that tries grammars",
    "hub/index_wheels.py": "pip, which downloads and installs nothing",
    "peers/driver_process.py": "the engines that `bench peers` was told to compare with",
    "cli/contest.py": "git, which is asked for the state of the sources",
}
RUNNING_WORDS = frozenset(
    {"run", "exec", "execute", "eval", "shell", "python", "code", "tool", "tools", "sandbox", "mcp", "agent", "script"}
)


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call with the last name of what it calls, but for `re.compile`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if ast.unparse(node.func) != "re.compile":
                yield name, node


def imports_what_it_is_told(name: str, call: ast.Call) -> bool:
    return name == "import_module" and not (call.args and isinstance(call.args[0], ast.Constant))


def names(source: str) -> Iterator[str]:
    """Yield every name that a program has; what stands in its texts is no name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) | ast.arg(arg=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case _:
                pass


def is_about_remote_code(name: str) -> bool:
    return any(word in name.lower() for word in REMOTE_CODE)


def runs_what_it_is_given(source: str) -> list[str]:
    return [
        ast.unparse(call)
        for name, call in calls(source)
        if (name in RUNS_TEXT and isinstance(call.func, ast.Name))
        or name in LOADS_FILES
        or imports_what_it_is_told(name, call)
    ]


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(SOURCES.rglob("*.py")):
        yield path.relative_to(SOURCES).as_posix(), path.read_text()


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(compile(text, 'x', 'exec'))",
        "importlib.import_module(config['auto_map'])",
        "importlib.import_module(f'{folder}.modeling')",
        "import_module(name=module)",
        "importlib.util.spec_from_file_location('m', path)",
        "runpy.run_path(path)",
        "__import__(name)",
    ],
)
def test_what_runs_text_is_found(source: str) -> None:
    assert runs_what_it_is_given(source)


@pytest.mark.parametrize("source", ["re.compile('x')", "importlib.import_module('json')", "model.eval()"])
def test_what_runs_nothing_is_not_found(source: str) -> None:
    assert not runs_what_it_is_given(source)


@pytest.mark.parametrize(
    "source",
    [
        "load(trust_remote_code=True)",
        "from transformers import AutoModel",
        "transformers.AutoModel",
        "x.from_pretrained()",
    ],
)
def test_names_of_remote_code_are_found(source: str) -> None:
    assert any(map(is_about_remote_code, names(source)))


def test_sec_26_no_source_runs_what_it_is_given_or_loads_programs_of_a_checkpoint() -> None:
    found = {place: runs for place, source in sources() if (runs := runs_what_it_is_given(source))}
    assert found == {}
    named = [(place, name) for place, source in sources() for name in names(source) if is_about_remote_code(name)]
    assert named == []


def fields_of(value: Any, path: str = "") -> Iterator[str]:
    """Yield the name of every setting below a value."""
    for field in dataclasses.fields(value):
        name = f"{path}{field.name}"
        yield name
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from fields_of(inner, f"{name}.")


def commands(app: App, path: str = "") -> Iterator[tuple[str, App]]:
    """Yield every command below an application by its words."""
    for name in app:
        if not name.startswith("-"):
            below = f"{path} {name}".strip()
            yield below, app[name]
            yield from commands(app[name], below)


def test_sec_26_no_option_and_no_setting_asks_for_remote_code() -> None:
    options = [*fields_of(Settings()), *EngineOptions.__annotations__]
    options += [field.name for kind in (EngineConfig, ServeConfig) for field in dataclasses.fields(kind)]
    flags = [
        name
        for _, command in commands(build_app())
        if command.default_command is not None
        for argument in command.assemble_argument_collection()
        for name in argument.names
    ]
    assert "server.port" in options
    assert "--served-model-name" in flags
    assert [name for name in (*options, *flags) if is_about_remote_code(name.replace("-", "_"))] == []


def test_sec_30_processes_are_started_in_known_places_and_never_with_a_shell() -> None:
    found = {
        place
        for place, source in sources()
        for name, call in calls(source)
        if name in STARTS_PROCESSES or ast.unparse(call.func) == "subprocess.run"
    }
    assert found == WHO_STARTS_PROCESSES.keys()
    shells = [place for place, source in sources() for _, call in calls(source) if is_shell(call)]
    assert shells == []


def is_shell(call: ast.Call) -> bool:
    return any(keyword.arg == "shell" for keyword in call.keywords) or ast.unparse(call.func) in {
        "os.system",
        "os.popen",
        "asyncio.create_subprocess_shell",
    }


def test_sec_30_no_command_runs_what_a_model_writes() -> None:
    words = {word for path, _ in commands(build_app()) for word in path.split()}
    assert {"chat", "serve", "keys"} <= words
    in_chat = {command.split()[0].removeprefix("/") for command in COMMANDS}
    assert {"help", "exit"} <= in_chat
    assert (words | in_chat) & RUNNING_WORDS == set()
