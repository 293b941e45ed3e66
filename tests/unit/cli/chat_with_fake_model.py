"""Run as a program by the terminal tests: the real `qwenstack chat`, with a slow model that echoes."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Mapping, Sequence

from qwenstack.cli.app import main
from qwenstack.cli.chat import command
from qwenstack.core.messages import Message
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.protocols import ModelCard
from qwenstack.core.sampling_params import SamplingParams


class Echo:
    """Says how many turns there are and repeats the last one, a character each 10 ms; "forever" never ends."""

    card = ModelCard(id="echo", created=0, max_model_len=99, vocab_size=9, num_parameters=9, weight_format="F32")
    default_sampling: Mapping[str, float | int] = {}

    def stream_chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams, *, enable_thinking: bool | None = None
    ) -> Generator[OutputDelta]:
        text = f"{len(messages)}:{messages[-1].content}"
        while True:
            for index, character in enumerate(text):
                time.sleep(0.01)
                is_last = index == len(text) - 1 and "forever" not in text
                yield OutputDelta(
                    request_id="r", text=character, token_ids=[1], finish_reason="stop" if is_last else None
                )
                if is_last:
                    return


command.load_llm = lambda settings: Echo()
sys.exit(main(["chat", *sys.argv[1:]]))
