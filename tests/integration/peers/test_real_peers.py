"""Other engines themselves, where `make peers` installed them: they compute what we compute, and say so alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwenstack.peers.driver_process import DriverProcess, Loaded, Scored, Timed
from qwenstack.peers.environment import PEERS, absence, our_command, peer_command, source_folder

SOURCES = source_folder()
ENVIRONMENT = SOURCES / ".venv-peers"
TEXT = [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 7158, 314, 7268, 30, 5148, 359, 1573, 4199, 30]
"""The capital of France is Paris, and the capital of Italy is Rome. Both are old cities."""

pytestmark = [
    pytest.mark.weights,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ENVIRONMENT.exists(), reason="`make peers` was not run"),
]


def ask(command: Sequence[str], path: Path) -> tuple[float, Timed]:
    """Return the perplexity of the text and a run of two streams."""
    with DriverProcess("engine", command) as driver:
        driver.ask({"op": "load", "path": str(path), "num_threads": 1}, Loaded)
        scored = driver.ask({"op": "score", "windows": [TEXT]}, Scored)
        prompts = [TEXT, [*TEXT[:1], *TEXT[3:], 30, 30]]
        return math.exp(scored.nll / scored.num_tokens), driver.ask(
            {"op": "run", "prompts": prompts, "max_tokens": 4}, Timed
        )


@pytest.fixture(scope="module")
def ours(smollm2_gguf: Path) -> tuple[float, Timed]:
    return ask(our_command(SOURCES), smollm2_gguf)


# OpenVINO reads the Q4_1 of this file differently; see docs/lab-notes.md.
@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.name != "openvino"], ids=lambda peer: peer.name)
def test_an_engine_foresees_and_continues_a_text_as_ours_does(peer, ours: tuple[float, Timed], smollm2_gguf: Path):
    if (reason := absence(peer, ENVIRONMENT)) is not None:
        pytest.skip(reason)
    perplexity, timed = ask(peer_command(peer, SOURCES, ENVIRONMENT), smollm2_gguf)
    assert perplexity == pytest.approx(ours[0], rel=0.03)  # bfloat16 and 8-bit activations differ by less
    assert timed.first_token_ids[0] == ours[1].first_token_ids[0]
    assert (timed.decode_tokens, timed.cached_tokens) == (6, 0)
    assert (ours[1].decode_tokens, ours[1].cached_tokens, ours[1].drafted_tokens) == (6, 0, 0)
