"""The examination: what is fine, what is not, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
from pathlib import Path

import pytest

from qwenstack import kernels
from qwenstack.cli.app import main
from qwenstack.cli.doctor import (
    check_bandwidth,
    check_memory,
    check_models,
    check_port,
    check_precision,
    check_self_test,
    check_web_page,
)
from qwenstack.cli.machine import describe_machine, useful_flags
from qwenstack.cli.settings import EngineSettings, ServerSettings, Settings
from qwenstack.kernels import Isa, SelfTest, supported_isas

NAMES = [
    "python",
    "platform",
    "cpu",
    "cores",
    "kernels",
    "self-test",
    "precision",
    "memory",
    "bandwidth",
    "models",
    "web page",
    "port",
    "settings",
]


def test_everything_is_looked_at_whatever_is_missing(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json", "--set", "server.port=0"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in checks] == NAMES
    assert all(bool(check["advice"]) == (check["status"] == "warn") for check in checks)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in NAMES)


@pytest.mark.parametrize(
    ("file", "wrong"),
    [("server = ", "not valid TOML"), ("[server]\nport = 'x'", "port"), ("[server]\nprot = 1", "prot")],
)
def test_a_wrong_file_is_a_finding_and_the_rest_is_looked_at_without_it(
    file: str, wrong: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "qwenstack.toml").write_text(file)
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json", "--set", "server.port=0"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert list(checks) == NAMES
    assert wrong in checks["settings"]["found"]
    assert checks["settings"]["status"] == "warn"
    assert checks["port"]["found"] == "127.0.0.1:0 is free"


def test_a_wrong_assignment_is_the_users_mistake(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--set", "server.prot=0"]) == 2
    assert "server.prot" in capsys.readouterr().err


def test_the_types_in_use_are_named():
    assert check_precision(EngineSettings()).found == (
        "weights stored, keys and values auto, activations as suits the model"
    )
    settings = EngineSettings(weight_format="int8", kv_cache_dtype="int8", activation_bits=8, short_prompt_tokens=256)
    assert check_precision(settings).found == (
        "weights int8, keys and values int8, activations 8 bits, 16 bits for prompts of at most 256 tokens"
    )


def test_the_self_test_of_the_chosen_instruction_set_is_told_with_its_time():
    isa = supported_isas()[0]
    check = check_self_test(Settings())
    assert check.status == "ok"
    assert re.fullmatch(rf"{isa} computes all \d+ operations as numpy does \(\d+ ms\)", check.found)
    reference = check_self_test(Settings(engine=EngineSettings(isa="reference")))
    assert (reference.status, reference.advice) == ("ok", "")


def test_an_instruction_set_that_computes_nonsense_is_named(monkeypatch: pytest.MonkeyPatch):
    def tested(isa: Isa) -> SelfTest:
        wrong = () if isa == "scalar" else ("linear Q4_K", "attend int8")
        return SelfTest(num_operations=26, wrong=wrong, duration_s=0.012)

    monkeypatch.setattr(kernels, "self_test_of", tested)
    monkeypatch.setattr(kernels, "isas_to_try", lambda isa: ("avx2", "scalar"))
    check = check_self_test(Settings())
    assert check.status == "warn"
    assert check.found == (
        "avx2 computes linear Q4_K, attend int8 wrongly (12 ms); "
        "scalar computes all 26 operations as numpy does (12 ms)"
    )
    assert "report" in check.advice
    monkeypatch.setattr(kernels, "isas_to_try", lambda isa: ("avx2",))
    assert check_self_test(Settings()).found.endswith("; none computes right numbers, so numpy does, very slowly")


def test_memory_is_read_where_there_is_some():
    check = check_bandwidth(Settings(engine=EngineSettings(num_threads=1)), 8 << 30)
    assert re.fullmatch(r"1 thread reads \d+\.\d GB/s of memory", check.found)
    assert check_bandwidth(Settings(), 100 << 20).found.startswith("not measured")


def test_little_memory_is_worth_a_warning():
    machine = describe_machine()
    assert check_memory(machine, 100 << 20).status == "warn"
    assert check_memory(machine, 8 << 30).status == "ok"
    unknown = dataclasses.replace(machine, memory_bytes=None)
    assert check_memory(unknown, 8 << 30).found == "8.6 GB free"


def test_an_empty_cache_says_how_to_fill_it():
    check = check_models(Settings())
    assert (check.status, check.advice) == ("warn", "qwenstack pull auto")


def test_a_page_that_was_not_built_says_how_to_build_it(tmp_path: Path):
    assert check_web_page(tmp_path).advice == "make web"
    (tmp_path / "index.html").write_text("")
    assert check_web_page(tmp_path).status == "ok"


def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = check_port(ServerSettings(port=port))
    assert check.status == "warn"
    assert f"127.0.0.1:{port}" in check.found
    assert "--port" in check.advice


def test_a_host_that_is_no_address_is_a_finding():
    assert check_port(ServerSettings(host="256.1.1.1")).status == "warn"


def test_flags_are_read_as_linux_writes_them():
    assert useful_flags("model name\t: X\nflags\t\t: fpu avx2 avx512_vnni sse\n") == ("avx2", "avx512_vnni")
    assert useful_flags("Features\t: fp asimddp\n") == ("asimddp",)
    assert useful_flags("") == ()


def test_the_machine_has_at_most_as_many_cores_as_threads():
    machine = describe_machine()
    assert 1 <= machine.num_cores <= machine.num_logical_cpus
