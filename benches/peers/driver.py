"""What every driver shares: requests come as JSON lines on standard input, answers go as JSON lines to standard output.

A driver is a program of its own that knows one engine and nothing of the others, so that each can live in an
environment of its own, and can be stopped by the system while another one runs. Standard library only.

    {"op": "load", "path": ..., "num_threads": 2}      -> engine, version, and what differs from the file
    {"op": "run", "prompts": [[...]], "max_tokens": 8} -> seconds until the first tokens, seconds and tokens after that
    {"op": "score", "windows": [[...]]}                -> sum of -log p(token | the tokens before it in its window)
    {"op": "quantise", "source": ..., "target": ..., "type": "Q4_0"}

An answer with `error` says in a sentence why there is no other one. The end of the input ends the driver.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, Protocol, TypedDict

_PR_SET_PDEATHSIG = 1


class RefusalError(Exception):
    """What an engine cannot do, as a sentence for the report."""


class Loaded(TypedDict, total=False):
    """What an engine says of the model it holds; the last three only where they differ from the file."""

    engine: str
    version: str
    weight_bytes_per_step: int
    kv_bytes_per_token: int
    remark: str


class Timed(TypedDict):
    """One batch of prompts, read and answered greedily to the last of `max_tokens`, end tokens included."""

    prefill_s: float
    """Until each answer has its first token."""
    decode_s: float
    """From then on."""
    decode_tokens: int
    """Of all answers, without the first ones."""
    cached_tokens: int | None
    """Prompt tokens that a cache answered for, by the engine's own counter; None: it has none."""
    drafted_tokens: int | None
    """Tokens that were guessed, by the engine's own counter; None: it has none."""
    first_token_ids: list[int]
    """Of each answer: engines that compute the same model mostly agree on it."""


class PeerDriver(Protocol):
    """An engine; a method that its driver lacks is something it cannot do."""

    def load(self, path: str, num_threads: int) -> Loaded:
        """Open a model and hold it."""
        ...

    def run(self, prompts: list[list[int]], max_tokens: int) -> Timed:
        """Read all prompts, then write all answers together."""
        ...

    def score(self, windows: list[list[int]]) -> float:
        """Return the sum of -log p over all tokens but the first of each window."""
        ...

    def quantise(self, source: str, target: str, type_name: str) -> None:
        """Write a file of another type."""
        ...


def serve(driver: object) -> None:
    """Answer requests until the input ends."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print what they like; it must not stand between the answers
    for line in sys.stdin:
        try:
            answer = _answer(driver, json.loads(line))
        except RefusalError as refusal:
            answer = {"error": str(refusal)}
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the report shall say it
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _die_with_parent() -> None:
    """Ask Linux for an end with the coordinator's: one that is stopped would never read that its input has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(driver: Any, request: dict[str, Any]) -> Any:
    op = request["op"]
    if not hasattr(driver, op):
        raise RefusalError(f"it cannot {op}")
    if op == "load":
        return driver.load(request["path"], request["num_threads"])
    if op == "run":
        return driver.run(request["prompts"], request["max_tokens"])
    if op == "score":
        windows = request["windows"]
        return {"nll": driver.score(windows), "num_tokens": sum(len(window) - 1 for window in windows)}
    if op == "quantise":
        driver.quantise(request["source"], request["target"], request["type"])
        return {}
    raise RefusalError(f"unknown request {op!r}")
