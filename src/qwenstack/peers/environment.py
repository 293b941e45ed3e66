"""Which engines there are, and where their drivers and their Python live."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import qwenstack
from qwenstack.core.errors import ConfigError
from qwenstack.peers.records import OURS

INSTALL = "make peers"
_NOT_BUILT = "not-built"
"""Folder of the environment in which the installation leaves a file for each peer that it failed to build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An engine that we compare ourselves with."""

    name: str
    package: str
    """As it is installed."""
    module: str
    """As it is imported."""
    driver: tuple[str, ...]
    """File in `benches/peers`, and its arguments."""


PEERS = (
    Peer(name="llama.cpp", package="llama-cpp-python", module="llama_cpp", driver=("llama_driver.py", "llama_cpp")),
    Peer(
        name="ik_llama.cpp",
        package="ik-llama-cpp-python",
        module="ik_llama_cpp",
        driver=("llama_driver.py", "ik_llama_cpp"),
    ),
    Peer(name="openvino", package="openvino-genai", module="openvino_genai", driver=("openvino_driver.py",)),
    Peer(name="transformers", package="transformers", module="transformers", driver=("transformers_driver.py",)),
)
QUANTISER = PEERS[0]
"""Who makes files of other types."""


def source_folder() -> Path:
    """Return the clone that this package runs from.

    Raises:
        ConfigError: it was installed without its sources.
    """
    folder = Path(qwenstack.__file__).parents[2]
    if not (folder / "benches" / "peers").is_dir():
        raise ConfigError(
            "The drivers of other engines are in the source tree, not in the installed package; run `make bench` in a "
            "clone of the project."
        )
    return folder


def find_peers(names: Sequence[str]) -> list[Peer]:
    """Return the peers of these names; none given: all.

    Raises:
        ConfigError: there is none of a name.
    """
    known = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no peer {name!r}; choose from {', '.join(known)}.")
    return [known[name] for name in names] or list(PEERS)


def our_command(sources: Path) -> list[str]:
    """Return how to start our own engine's driver."""
    return [sys.executable, str(sources / "benches" / "peers" / f"{OURS}_driver.py")]


def peer_command(peer: Peer, sources: Path, environment: Path) -> list[str]:
    """Return how to start a peer's driver, deaf to variables that would lead its Python to our packages."""
    file, *arguments = peer.driver
    return [str(environment / "bin" / "python"), "-E", str(sources / "benches" / "peers" / file), *arguments]


def absence(peer: Peer, environment: Path) -> str | None:
    """Return why a peer cannot be asked, and what helps; None: it can."""
    if any(environment.glob(f"lib/python*/site-packages/{peer.module}")):
        return None
    try:
        reason = (environment / _NOT_BUILT / peer.package).read_text(encoding="utf-8").strip()
    except OSError:
        return f"{peer.name} is not installed in {str(environment)!r}; `{INSTALL}` installs it."
    return f"{peer.name} was not built: {reason}. `{INSTALL}` tries again."
