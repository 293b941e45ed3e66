"""What is measured: a number of streams, the length of their prompts, and which part of the work is timed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwenstack.core.errors import ConfigError

DEFAULT_WORKLOADS = ("decode-1", "prefill-512", "decode-8", "decode-16", "context-4096", "context-8192")
SHORT_PROMPT_TOKENS = 16
"""Before a decode measurement: enough for an ordinary step, and 16 streams fit one of ours."""
_NAME = re.compile(r"(prefill|decode|context)-([1-9]\d{0,6})")
_WARM_UP_TOKENS = 4
_WARM_UP_CONTEXT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of work; `name` says all but how long answers are."""

    name: str
    timed: Literal["prefill", "decode"]
    num_streams: int
    prompt_tokens: int
    max_tokens: int

    @classmethod
    def parse(cls, name: str, max_tokens: int) -> Workload:
        """Read `prefill-TOKENS`, `decode-STREAMS` or `context-TOKENS`, the last being decoding after a long prompt.

        Raises:
            ConfigError: the name has no such form.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise ConfigError(
                f"There is no workload {name!r}; give prefill-TOKENS, decode-STREAMS or context-TOKENS, "
                "such as prefill-512, decode-8 or context-4096."
            )
        kind, number = found[1], int(found[2])
        if kind == "prefill":
            return cls(name=name, timed="prefill", num_streams=1, prompt_tokens=number, max_tokens=1)
        is_long = kind == "context"
        return cls(
            name=name,
            timed="decode",
            num_streams=1 if is_long else number,
            prompt_tokens=number if is_long else SHORT_PROMPT_TOKENS,
            max_tokens=max_tokens,
        )

    def shortened(self) -> Workload:
        """Return what wakes an engine up for this: the same shapes, few steps."""
        return Workload(
            name=self.name,
            timed=self.timed,
            num_streams=self.num_streams,
            prompt_tokens=min(self.prompt_tokens, _WARM_UP_CONTEXT),
            max_tokens=min(self.max_tokens, _WARM_UP_TOKENS),
        )

    def fresh_prompts(self, source: random.Random, vocab_size: int) -> list[list[int]]:
        """Return random ids that no engine has seen before."""
        return [[source.randrange(vocab_size) for _ in range(self.prompt_tokens)] for _ in range(self.num_streams)]

    def bytes_per_step(self, weight_bytes: int, kv_bytes_per_token: int) -> int:
        """Return what a decoding step must read: the weights once, and what each stream has behind it on average."""
        mean_context = self.prompt_tokens + self.max_tokens // 2
        return weight_bytes + self.num_streams * mean_context * kv_bytes_per_token


def turns(engines: Sequence[str], repetition: int) -> list[str]:
    """Return who runs when: everybody begins once before anybody begins twice."""
    first = repetition % len(engines)
    return [*engines[first:], *engines[:first]]
