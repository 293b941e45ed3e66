"""The engine writes the end of thinking itself, and goes on from there as if the model had."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
from support.toy import EOS, ToyTokenizer, toy_logits, toy_model

from qwenstack.core.outputs import CompletionOutput
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.engine import Engine
from qwenstack.tokenizer import ChatMarkers, Marks

OPEN, CLOSE = 0, 1
CLOSING_IDS = [7, 8, CLOSE]


class ThinkingTokenizer(ToyTokenizer):
    """`a` opens thinking and `b` closes it."""

    chat_markers = ChatMarkers(thinking=Marks("a", "b"))

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        return CLOSING_IDS


def by_the_book(prompt: list[int], budget: int, num_tokens: int) -> list[int]:
    tokens, forced = list(prompt), []
    for position in range(num_tokens):
        if position == budget and CLOSE not in tokens[len(prompt) :]:
            forced = list(CLOSING_IDS)
        logits = toy_logits(tokens).copy()
        logits[EOS] = -np.inf
        tokens.append(forced.pop(0) if forced else int(logits.argmax()))
    return tokens[len(prompt) :]


def test_answers_that_think_too_long_are_those_of_a_prompt_that_closed_thinking() -> None:
    model = dataclasses.replace(toy_model(), tokenizer=cast("Any", ThinkingTokenizer()))
    engine = Engine(model)
    prompts = [[5, number, OPEN] for number in range(8)]
    params = SamplingParams(
        temperature=0, max_tokens=20, output_format="thinking", thinking_budget=6, logit_bias={EOS: -100}
    )
    outputs = {str(number): CompletionOutput(index=0) for number in range(8)}
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    while engine.has_work:
        for delta in engine.step():
            outputs[delta.request_id].add(delta)
    for prompt, output in zip(prompts, outputs.values(), strict=True):
        assert output.token_ids == by_the_book(prompt, 6, 20)
        assert output.num_generated_tokens == 20
        assert output.reasoning_text + "b" + output.text == ToyTokenizer().decode(output.token_ids)
