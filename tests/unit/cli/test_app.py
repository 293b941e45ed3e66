"""The command as a shell sees it: exit codes, one-sentence errors, clean output, a quick help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qwenstack
from qwenstack.cli import app as command_line
from qwenstack.cli.app import main
from qwenstack.core.errors import ConfigError, DownloadError

SOURCES = str(Path(qwenstack.__file__).parent.parent)
GOLDEN = Path(__file__).parent / "golden"
UPDATES_GOLDEN = bool(os.environ.get("QWENSTACK_UPDATE_HELP"))
COMMANDS = [
    "",
    "chat",
    "serve",
    "keys",
    "keys create",
    "keys limit",
    "keys list",
    "keys revoke",
    "keys usage",
    "audit",
    "audit prune",
    "audit show",
    "audit verify",
    "backup",
    "restore",
    "pull",
    "models",
    "cache",
    "cache show",
    "cache clear",
    "bench",
    "bench engine",
    "bench needle",
    "bench peers",
    "bench perplexity",
    "replay",
    "config",
    "config show",
    "doctor",
]


def in_a_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": SOURCES}
    command = [sys.executable, "-m", "qwenstack", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, **options)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command or "qwenstack")
def test_the_help_is_the_one_that_was_read_and_agreed_on(command: str, capsys: pytest.CaptureFixture[str]):
    """To change it on purpose: QWENSTACK_UPDATE_HELP=1, then read the difference."""
    assert main([*command.split(), "--help"]) == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    path = GOLDEN / f"{'_'.join(['qwenstack', *command.split()])}.txt"
    if UPDATES_GOLDEN:
        path.write_text(printed, encoding="utf-8")
    assert printed == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chta"], 'Did you mean "chat"?'),
        (["chat", "--temprature", "1"], "Did you mean --temperature?"),
        (["chat", "--temperature", "hot"], "--temperature"),
        (["chat", "-p"], "-p"),
        (["chat", "-p", "hi", "--top-p", "3"], "`top_p` is 3.0; it must be between 0 and 1."),
        (["chat", "-p", " "], "There is nothing to answer"),
        (["config", "show", "--set", "server.prot=1"], "Did you mean 'server.port'?"),
        (["serve", "--port", "70000"], "server.port is 70000 (from the command line)"),
        (["bench", "engine", "--batch", "0"], "--batch"),
        (["bench", "peers", "--workloads", "train-1"], "prefill-TOKENS, decode-STREAMS or context-TOKENS"),
        (["bench", "peers", "--peers", "vllm"], "choose from llama.cpp"),
        (["bench", "peers", "--environment", "nowhere"], "`make peers`"),
        (["bench", "perplexity"], "QWENSTACK_DATA"),
        (["bench", "perplexity", "--text", __file__, "--language", "zh"], "--language"),
    ],
)
def test_a_wrong_request_gets_one_sentence_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(DownloadError("the hash is wrong"), 1), (ConfigError("no such key"), 2), (KeyboardInterrupt(), 130)],
)
def test_errors_become_exit_codes(
    error: BaseException, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def failing_app():
        def run(_: object) -> None:
            raise error

        return run

    monkeypatch.setattr(command_line, "build_app", failing_app)
    assert main([]) == exit_code
    assert capsys.readouterr().err == ("" if exit_code == 130 else f"error: {error}\n")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{qwenstack.__version__}\n"


def test_an_unknown_model_names_the_nearest_ones(capsys: pytest.CaptureFixture[str]):
    assert main(["pull", "smolm2-135m"]) == 1
    assert "Did you mean 'smollm2-135m'" in capsys.readouterr().err


def test_pull_of_a_local_file_prints_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    assert main(["pull", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "tiny", "path": str(path), "sha256": None, "bytes": 4}
    assert main(["pull", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_models_lists_what_can_be_had(capsys: pytest.CaptureFixture[str]):
    assert main(["models"]) == 0
    assert "qwen2.5-coder-0.5b" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert listed["smollm2-135m"] | {"description": ""} == {
        "name": "smollm2-135m",
        "description": "",
        "bytes": 98_362_432,
        "cached": False,
    }


def test_python_minus_m_is_the_same_command():
    done = in_a_process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{qwenstack.__version__}\n", "")


def test_a_reader_that_leaves_ends_the_command_quietly():
    command = f"{sys.executable} -m qwenstack config show | true; echo ${{PIPESTATUS[0]}}"
    environ = {**os.environ, "PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=environ)
    assert done.stderr == ""
    assert done.stdout.strip() in {"141", "0"}  # 0 where we were faster than the reader


def test_help_comes_quickly():
    """The contract is 0.3 s on an idle machine, three times what its libraries take alone; a busy one slows both."""
    libraries = min(processor_seconds("-c", "import cyclopts, rich.console") for _ in range(3))
    ours = min(processor_seconds("-m", "qwenstack", "--help") for _ in range(3))
    assert ours < 4.5 * libraries


def processor_seconds(*arguments: str) -> float:
    before = os.times()
    environ = {**os.environ, "PYTHONPATH": SOURCES}
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=60, env=environ)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("module", ["numpy", "asyncio", "httpx", "fastapi", "jinja2", "tokenizers", "rich.table"])
def test_what_is_heavy_is_not_imported_before_it_is_needed(module: str):
    code = f"import sys, qwenstack.cli.app; print({module!r} in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environ)
    assert done.stdout == "False\n"
