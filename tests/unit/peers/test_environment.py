"""Where other engines are, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenstack.core.errors import ConfigError
from qwenstack.peers.environment import PEERS, absence, find_peers, peer_command, source_folder


def test_a_peer_that_is_not_there_says_what_installs_it(tmp_path: Path):
    reason = absence(PEERS[0], tmp_path)
    assert reason is not None
    assert "llama.cpp is not installed" in reason
    assert "`make peers` installs it" in reason


def test_a_peer_that_did_not_build_says_why(tmp_path: Path):
    (tmp_path / "not-built").mkdir()
    (tmp_path / "not-built" / "ik-llama-cpp-python").write_text("the compiler knows no C++20\n")
    reason = absence(find_peers(["ik_llama.cpp"])[0], tmp_path)
    assert reason is not None
    assert "was not built: the compiler knows no C++20" in reason


def test_a_peer_that_is_there_is_present(tmp_path: Path):
    (tmp_path / "lib" / "python3.11" / "site-packages" / "llama_cpp").mkdir(parents=True)
    assert absence(PEERS[0], tmp_path) is None


def test_an_unknown_peer_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="choose from llama"):
        find_peers(["vllm"])


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_a_driver(peer, tmp_path: Path):
    command = peer_command(peer, source_folder(), tmp_path)
    assert command[0] == str(tmp_path / "bin" / "python")
    assert Path(command[2]).is_file()
