"""The settings tree, where it is read from, and what the layers below make of it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from qwenstack.cli.app import main
from qwenstack.cli.loading import engine_config, model_cache
from qwenstack.cli.serve import serve_config
from qwenstack.cli.settings import Settings, load_settings, user_file
from qwenstack.core.config import Between, settings_of
from qwenstack.core.errors import ConfigError
from qwenstack.engine.config import EngineConfig
from qwenstack.hub.cache import PulledModel
from qwenstack.serving.config import ServeConfig


def test_the_layers_below_have_the_same_defaults():
    settings = Settings()
    model = PulledModel(name="m", path=Path("m.gguf"), sha256=None, bytes=0)
    assert engine_config(settings, model) == EngineConfig(model_path=Path("m.gguf"), model_name="m")
    served = serve_config(settings)
    assert served == ServeConfig(static_dir=served.static_dir)


def test_the_engine_takes_every_value_that_the_settings_allow():
    for setting in settings_of(Settings).values():
        section, _, name = setting.key.rpartition(".")
        limits = [mark for mark in setting.marks if isinstance(mark, Between)]
        for number in [limit for mark in limits for limit in (mark.low, mark.high)]:
            if section == "engine":
                # a step must have room for a token of every answer
                room = {"max_num_seqs": {"max_num_batched_tokens": 4096}, "max_num_batched_tokens": {"max_num_seqs": 1}}
                EngineConfig(model_path=Path("m"), model_name="m", **{name: number}, **room.get(name, {}))
            elif name in {field.name for field in fields(ServeConfig)}:
                ServeConfig(**{name: number})


def test_files_environment_and_options_are_read_in_order(home: Path, monkeypatch: pytest.MonkeyPatch):
    user_file().parent.mkdir(parents=True)
    user_file().write_text('model = "a"\n[server]\nport = 1\napi_keys = ["user-secret"]\n')
    Path("qwenstack.toml").write_text('model = "b"\n[engine]\nmax_num_seqs = 2\n')
    monkeypatch.setenv("QWENSTACK_ENGINE_MAX_NUM_SEQS", "3")
    monkeypatch.setenv("QWENSTACK_CACHE_DIR", "~/models")
    resolved = load_settings(["server.port=4"], {"engine.num_threads": 5, "model": None})
    settings = resolved.value
    assert (settings.model, settings.engine.max_num_seqs, settings.server.port) == ("b", 3, 4)
    assert settings.engine.num_threads == 5
    assert model_cache(settings.hub).path == home / "models"
    assert resolved.origins["model"] == "qwenstack.toml"
    assert resolved.origins["hub.cache_dir"] == "QWENSTACK_CACHE_DIR"


def test_the_variables_that_other_tools_share_are_obeyed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = load_settings().value.hub
    assert (hub.hf_endpoint, hub.offline) == ("https://mirror.example", True)


@pytest.mark.parametrize(
    "name", ["QWENSTACK_DATA", "QWENSTACK_FUZZ_SECONDS", "QWENSTACK_BASE_URL", "QWENSTACK_API_KEY"]
)
def test_variables_of_scripts_and_tests_are_no_settings(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "1")
    load_settings()


@pytest.mark.parametrize(
    "line",
    [
        'hub.hf_endpoint = "https://evil.example"',
        'server.api_keys = ["known-to-all"]',
        'oidc.issuer = "https://evil.example"',
        'adapters.folder = "/"',
        'engine.journal_path = "/home/me/.bashrc"',
        'engine.draft_model_path = "./model"',
    ],
)
def test_sec_25_a_folder_cannot_decide_where_things_go_or_who_may_come_in(line: str):
    Path("qwenstack.toml").write_text(line)
    with pytest.raises(ConfigError, match="a project's file may not decide"):
        load_settings()


def test_config_show_names_values_and_origins_and_hides_secrets(capsys: pytest.CaptureFixture[str]):
    assert main(["config", "show", "--json", "--set", "server.api_keys=sesame-open,other-key"]) == 0
    out = capsys.readouterr().out
    shown = {row["key"]: row for row in json.loads(out)}
    assert shown["server.port"] == {"key": "server.port", "value": 8000, "origin": "default"}
    assert shown["server.api_keys"]["value"] == ["***", "***"]
    assert "sesame" not in out
    assert list(shown) == list(settings_of(Settings))


def test_config_show_as_a_table_has_a_line_for_each_setting(capsys: pytest.CaptureFixture[str]):
    assert main(["config", "show", "--set", "hub.hf_token=hf_secret", "--set", "server.allowed_hosts=a,b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(settings_of(Settings))
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["hub.hf_token"] == ["***", "the", "command", "line"]
    assert rows["server.allowed_hosts"] == ["a,b", "the", "command", "line"]
    assert rows["engine.num_threads"] == ["none", "default"]
