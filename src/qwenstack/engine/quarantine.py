"""Requests that end the engine are not run a third time.

A request that was computed when the engine died is a suspect; with a second death it is refused. Suspects run one at a
time, so that the second death has one suspect and a bystander is cleared by its own answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable

import msgspec

from qwenstack.core.errors import RequestError
from qwenstack.engine.wire import Submit

_MOST_DEATHS = 2
_MEMORY_S = 600.0
"""Long enough for a client that retries with growing pauses, short enough that a repaired machine forgets."""
_MAX_SUSPECTS = 4096
"""A death names at most the sequences of one step, which are no more."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Suspicion:
    num_deaths: int
    expires_s: float


class Quarantine:
    """Remembers for ten minutes which requests were computed when the engine died."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without a suspicion; `clock` counts seconds and never goes back."""
        self._clock = clock
        self._suspicions: OrderedDict[str, _Suspicion] = OrderedDict()
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def admit(self, digest: str) -> AsyncGenerator[None]:
        """Let a request run inside: at once, or where it is a suspect, when no other suspect runs.

        Raises:
            RequestError: it ended the engine twice; code `quarantined`.
        """
        self._refuse_poison(digest)
        if digest not in self._suspicions:
            yield
            return
        async with self._turn:
            self._refuse_poison(digest)  # the one who waited may be the one that was running
            yield

    def blame(self, digests: Iterable[str]) -> None:
        """Take note of one death and of the requests that were computed then."""
        self._forget_expired()
        for digest in set(digests):
            known = self._suspicions.pop(digest, None)
            num_deaths = 1 if known is None else known.num_deaths + 1
            self._suspicions[digest] = _Suspicion(num_deaths, self._clock() + _MEMORY_S)
        while len(self._suspicions) > _MAX_SUSPECTS:
            self._suspicions.popitem(last=False)

    def acquit(self, digest: str) -> None:
        """Clear a request that was answered to its end."""
        self._suspicions.pop(digest, None)

    def _refuse_poison(self, digest: str) -> None:
        self._forget_expired()
        suspicion = self._suspicions.get(digest)
        if suspicion is not None and suspicion.num_deaths >= _MOST_DEATHS:
            left_s = suspicion.expires_s - self._clock()
            raise RequestError(
                f"The engine died {suspicion.num_deaths} times while it computed this very request, so it is not run "
                f"again for {left_s:.0f} s. Change the request, and please report it.",
                code="quarantined",
            )

    def _forget_expired(self) -> None:
        now_s = self._clock()
        while self._suspicions:
            digest, suspicion = next(iter(self._suspicions.items()))
            if suspicion.expires_s > now_s:
                return
            del self._suspicions[digest]


def request_digest(request: Submit) -> str:
    """Name what the engine computes of a request: prompt, parameters and adapter, not who asks or how urgently."""
    biases = sorted(request.params.logit_bias.items())  # a mapping has an order that says nothing
    params = dataclasses.replace(request.params, logit_bias={})
    computed = (request.prompt_token_ids, params, biases, request.options.adapter)
    return hashlib.sha256(msgspec.msgpack.encode(computed)).hexdigest()
