"""The administration beside `qwenstack serve`: the file of its key, and its port."""

from __future__ import annotations

import re
import socket
import stat
import threading
from pathlib import Path

import pytest

from qwenstack.cli.administration import KEY_FILE, load_admin_key, plan_administration
from qwenstack.cli.settings import load_settings
from qwenstack.core.errors import ConfigError
from qwenstack.serving import ServeConfig


def test_sec_25_the_first_start_makes_a_key_that_later_ones_use(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key = load_admin_key(folder)
    assert re.fullmatch(r"qsa-[\w-]{43}", key)
    assert load_admin_key(folder) == key
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]
    assert load_admin_key(tmp_path / "another") != key
    ServeConfig(admin_keys=(key,))
    assert key not in repr(ServeConfig(admin_keys=(key,)))


def test_servers_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    keys: list[str] = []
    threads = [threading.Thread(target=lambda: keys.append(load_admin_key(tmp_path / "data"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(keys) == 8
    assert len(set(keys)) == 1


@pytest.mark.parametrize("damage", ["mode", "link", "short", "folder"])
def test_sec_25_a_file_that_others_could_have_written_or_read_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "data"
    load_admin_key(folder)
    path = folder / KEY_FILE
    match damage:
        case "mode":
            path.chmod(0o640)
        case "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case "short":
            path.write_text("qsa-x\n")
        case _:
            path.unlink()
            path.mkdir()
    with pytest.raises(ConfigError, match="Remove it"):
        load_admin_key(folder)


def test_a_taken_port_costs_the_administration_alone_unless_somebody_chose_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        chosen = load_settings([f"server.admin_port={port}"])
        with pytest.raises(ConfigError, match=r"server\.admin_port"):
            plan_administration(chosen, ServeConfig())
        by_default = type(chosen)(value=chosen.value, origins=dict.fromkeys(chosen.origins, "default"))
        assert plan_administration(by_default, ServeConfig()) is None
    assert "server.admin_port=PORT" in caplog.text


def test_its_port_and_address_are_its_own(home: Path) -> None:
    plan = plan_administration(load_settings(["server.admin_port=0"]), ServeConfig(port=1, host="0.0.0.0"))
    assert plan is not None
    with plan.listener:
        assert plan.listener.getsockname()[0] == "127.0.0.1"
        assert plan.config.is_loopback
        assert plan.key_path == home / ".local" / "share" / "qwenstack" / KEY_FILE
    assert plan_administration(load_settings(["server.admin_port=off"]), ServeConfig()) is None
    assert plan_administration(load_settings(["storage.url=off"]), ServeConfig()) is None
    with pytest.raises(ConfigError, match="audit log"):
        plan_administration(load_settings(["storage.url=off", "server.admin_port=0"]), ServeConfig())
    with pytest.raises(ConfigError, match="'off', or a whole number"):
        load_settings(["server.admin_port=on"])
