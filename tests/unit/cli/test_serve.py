"""Before anything is fetched or loaded, `serve` refuses what cannot work."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from qwenstack.cli import serve as serve_command
from qwenstack.cli.app import main
from qwenstack.cli.serve import ServeOptions


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: object) -> None:
        pytest.fail("a model was fetched for a server that cannot start")

    monkeypatch.setattr(serve_command, "fetch_model", refuse)


def test_another_host_without_a_key_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "there is no API key" in capsys.readouterr().err


def test_a_taken_port_is_named_with_the_option_to_change_it(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert str(port) in err
    assert "--port" in err


def test_the_key_of_clients_is_not_taken_for_one_of_the_servers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("QWENSTACK_API_KEY", "a-clients-key")
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    err = capsys.readouterr().err
    assert "QWENSTACK_API_KEYS" in err
    assert "a-clients-key" not in err


def test_traces_without_their_packages_are_refused_with_the_command_to_get_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "qwenstack.serving.otel", raising=False)
    assert main(["serve", "--port", "0"]) == 2
    assert ".venv/bin/pip install -e '.[otel]'" in capsys.readouterr().err


def test_options_that_were_not_used_leave_the_settings_alone():
    assert set(ServeOptions().by_key().values()) == {None}
    assert ServeOptions(api_key=("k",)).by_key()["server.api_keys"] == ("k",)


def test_without_a_database_nothing_is_written_and_only_configured_keys_count(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    nothing = ["--set", "storage.url=off"]
    assert main(["serve", "--host", "0.0.0.0", *nothing]) == 2
    assert "there is no API key" in capsys.readouterr().err
    assert main(["keys", "create", "a", *nothing]) == 2
    assert "no database" in capsys.readouterr().err
    assert list(home.iterdir()) == []


def test_an_issuer_without_an_audience_is_refused_and_a_project_may_name_neither(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", "--set", "oidc.issuer=https://id.example"]) == 2
    assert "oidc.audience" in capsys.readouterr().err
    Path("qwenstack.toml").write_text('[oidc]\nissuer = "https://evil.example"\naudience = "x"\n')
    assert main(["serve"]) == 2
    assert "oidc.issuer" in capsys.readouterr().err
