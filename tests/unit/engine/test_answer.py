"""One answer on its way out: text, ids and log-probabilities stay together, whatever is kept apart, cut or forced."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.byte_tokenizer import EOS, MARKERS, THINK, THINK_END, ByteTokenizer

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.core.outputs import CompletionOutput, OutputDelta, TokenLogprob
from qwenstack.core.sampling_params import OutputFormat, SamplingParams
from qwenstack.engine.answer import AnswerStream, Release
from qwenstack.engine.output_parser import OutputParser
from qwenstack.engine.thinking import CLOSING_SENTENCE
from qwenstack.tokenizer import ChatMarkers

MAX_EXAMPLES = int(os.environ.get("QWENSTACK_PARSER_CASES", "200"))
CALL_TEXT = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def stream(
    params: SamplingParams, tokenizer: ByteTokenizer | None = None, prompt: str = "", *, max_tokens: int = 10_000
) -> AnswerStream:
    tokenizer = tokenizer or ByteTokenizer()
    ids = tokenizer.encode(prompt, parse_special=True)
    return AnswerStream(cast("Any", tokenizer), params, max_tokens=max_tokens, prompt_token_ids=ids)


def as_delta(released: Release) -> OutputDelta:
    fields = {name: getattr(released, name) for name in Release.__dataclass_fields__}
    return OutputDelta(request_id="r", **fields)


def feed(answer: AnswerStream, ids: Sequence[int], *, logprobs: bool = True) -> CompletionOutput:
    """Push tokens as an engine does: those that are forced come first."""
    output = CompletionOutput(index=0)
    waiting = list(ids)
    while output.finish_reason is None and (waiting or answer.forced_token_ids()):
        forced = answer.forced_token_ids()
        token_id = forced[0] if forced else waiting.pop(0)
        logprob = TokenLogprob(token_id=token_id, logprob=-1.0) if logprobs else None
        output.add(as_delta(answer.push(token_id, logprob)))
    return output


def run(text: str, prompt: str = "", tokenizer: ByteTokenizer | None = None, **params: Any) -> CompletionOutput:
    tokenizer = tokenizer or ByteTokenizer()
    answer = stream(SamplingParams(**{"output_format": "chat", **params}), tokenizer, prompt)
    return feed(answer, [*tokenizer.encode(text, parse_special=True), EOS])


def test_thinking_answer_and_calls_come_apart() -> None:
    output = run(f"<think>\nhm\n</think>\n\nSure.\n{CALL_TEXT}")
    assert (output.reasoning_text, output.text) == ("hm", "Sure.")
    assert [(call.name, call.arguments) for call in output.tool_calls] == [("f", '{"a": 1}')]
    assert (output.finish_reason, output.stop_reason) == ("stop", None)


def test_the_format_says_what_is_kept_apart() -> None:
    text = f"<think>hm</think>{CALL_TEXT}"
    assert run(text, output_format="text").text == text
    thinking = run(text, output_format="thinking")
    assert (thinking.reasoning_text, thinking.text, thinking.tool_calls) == ("hm", CALL_TEXT, [])


def test_a_model_without_a_format_for_calls_refuses_them() -> None:
    without = ByteTokenizer(markers=ChatMarkers())
    with pytest.raises(RequestError, match="tool calls") as refusal:
        stream(SamplingParams(output_format="chat"), without)
    assert refusal.value.param == "tools"
    assert run("<think>x", tokenizer=without, output_format="thinking").text == "<think>x"


@pytest.mark.parametrize(
    ("prompt", "reasoning_text"),
    [
        ("<|im_end|>\nassistant\n<think>\n", "ab"),
        ("<|im_end|>\nassistant\n", ""),
        ("<|im_end|>\nassistant\n<think>\n\n</think>\n\n", ""),
        ("<think>never closed<|im_end|>\nassistant\n", ""),
        ("<think>a</think>b<think>", "ab"),
    ],
)
def test_the_prompt_may_have_opened_thinking(prompt: str, reasoning_text: str) -> None:
    output = run("ab</think>c", prompt)
    assert output.reasoning_text == reasoning_text
    assert output.text == ("c" if reasoning_text else "ab</think>c")


def test_stop_strings_look_at_the_answer_alone() -> None:
    call = CALL_TEXT.replace("1", '"END"')
    output = run(f"<think>END</think>{call}a END b", stop=["END"])
    assert (output.reasoning_text, output.text, len(output.tool_calls)) == ("END", "a ", 1)
    assert (output.finish_reason, output.stop_reason) == ("stop", "END")
    assert run("<think>a END b", output_format="text", stop=["END"]).text == "<think>a "
    assert run("<think>x</think>a END", stop=["END"], include_stop_str_in_output=True).text == "a END"


def test_a_stop_string_ends_ids_and_logprobs_where_it_ends_the_text() -> None:
    output = run("<think>hm</think>\n\nabcSTOPdef", stop=["STOP"])
    shown = [THINK, *b"hm", THINK_END, *b"\n\nabc"]
    assert output.token_ids == shown
    assert [entry.token_id for entry in output.logprobs or ()] == shown
    assert output.num_generated_tokens == len(shown) + len("STOP")


def test_tokens_that_a_stop_string_cuts_away_were_generated_all_the_same() -> None:
    output = run("abSTOP", output_format="text", stop=["STOP"])
    assert (output.token_ids, output.num_generated_tokens) == ([*b"ab"], 6)


def test_a_stop_string_does_not_span_a_call() -> None:
    output = run(f"a{CALL_TEXT}b", stop=["ab"])
    assert (output.text, output.finish_reason, output.stop_reason) == ("ab", "stop", None)


def test_marks_that_are_control_tokens_are_marks_too() -> None:
    tokenizer = ByteTokenizer(special=frozenset(range(256, 261)))
    output = run(f"<think>hm</think>a{CALL_TEXT}", tokenizer=tokenizer)
    assert (output.reasoning_text, output.text, len(output.tool_calls)) == ("hm", "a", 1)
    assert run("<think>hm", tokenizer=tokenizer, output_format="text").text == "hm"


def test_a_spent_budget_closes_thinking_with_a_sentence() -> None:
    output = run("<think>abcdefgh", thinking_budget=3)
    assert output.reasoning_text == "abc" + CLOSING_SENTENCE.rstrip("\n")
    assert output.text == "defgh"
    assert output.token_ids == [THINK, *b"abc", *CLOSING_SENTENCE.encode(), THINK_END, *b"\n\ndefgh", EOS]
    assert output.num_reasoning_tokens == 3 + len(CLOSING_SENTENCE)
    assert output.num_generated_tokens == len(output.token_ids)


def test_thinking_that_closes_in_time_is_left_alone() -> None:
    output = run("<think>ab</think>c", thinking_budget=3)
    assert (output.reasoning_text, output.text, output.num_reasoning_tokens) == ("ab", "c", 2)
    assert run("no thinking", thinking_budget=0).text == "no thinking"


@pytest.mark.parametrize("prompt", ["<think>\n", ""])
def test_a_budget_of_nothing_leaves_the_block_empty(prompt: str) -> None:
    answer = stream(SamplingParams(output_format="chat", thinking_budget=0), prompt=prompt)
    if not prompt:
        assert answer.forced_token_ids() == ()
        answer.push(THINK, None)
    assert list(answer.forced_token_ids()) == [*b"\n", THINK_END, *b"\n\n"]
    output = feed(answer, [*b"yes", EOS])
    assert (output.reasoning_text, output.text, output.num_reasoning_tokens) == ("", "yes", 1)


def test_a_budget_never_cuts_a_character() -> None:
    output = run("<think>好的abc", thinking_budget=4)
    assert output.reasoning_text.startswith("好的\n\nConsidering")


def test_a_budget_holds_also_where_thinking_is_not_kept_apart() -> None:
    output = run("<think>abcdef", output_format="text", thinking_budget=2)
    assert output.text == f"<think>ab{CLOSING_SENTENCE}</think>\n\ncdef"


def test_marks_may_be_text() -> None:
    tokenizer = ByteTokenizer(has_marks=False, bos_token_id=1)
    answer = stream(SamplingParams(output_format="chat", thinking_budget=2), tokenizer)
    output = feed(answer, [*b"<think>abcdef", EOS])
    assert output.reasoning_text == "ab" + CLOSING_SENTENCE.rstrip("\n")
    assert output.text == "cdef"
    assert 1 not in output.token_ids


def test_the_length_limit_holds_within_forced_tokens() -> None:
    answer = stream(SamplingParams(output_format="chat", thinking_budget=1), max_tokens=10)
    output = feed(answer, [THINK, *b"abc"])
    assert (len(output.token_ids), output.finish_reason) == (10, "length")
    assert output.reasoning_text == "a\n\nConsid"


def test_a_grammar_waits_until_thinking_is_over() -> None:
    answer = stream(SamplingParams(output_format="thinking", grammar=Grammar(kind="json_object")))
    assert (answer.is_thinking, answer.ids_beside_grammar) == (False, (THINK,))
    seen: list[bool] = []
    for token_id in (THINK, *b"a", THINK_END, *b"\n"):
        answer.push(token_id, None)
        seen.append(answer.is_thinking)
        assert answer.ids_beside_grammar == ()
    assert seen == [True, True, False, False]
    plain = stream(SamplingParams(grammar=Grammar(kind="json_object")))
    assert (plain.is_thinking, plain.ids_beside_grammar) == (False, ())
    assert stream(SamplingParams(grammar=Grammar(kind="json_object")), prompt="<think>\n").is_thinking


@pytest.mark.parametrize("required_tool", [None, "*", "f"])
@pytest.mark.parametrize("has_marks", [True, False])
def test_a_call_that_the_limit_cuts_before_its_arguments_leaves_no_text(
    required_tool: str | None, has_marks: bool
) -> None:
    tokenizer = ByteTokenizer(has_marks=has_marks)
    ids = tokenizer.encode(CALL_TEXT, parse_special=True)
    params = SamplingParams(
        output_format="chat", grammar=Grammar(kind="tools", source="[]", required_tool=required_tool)
    )
    for max_tokens in range(1, len(ids)):
        output = feed(stream(params, tokenizer, max_tokens=max_tokens), ids)
        is_whole_mark = "<tool_call>" in tokenizer.decode(ids[:max_tokens])
        assert output.text == ("" if is_whole_mark or required_tool else CALL_TEXT[:max_tokens])
        assert (output.finish_reason, output.token_ids) == ("length", ids[:max_tokens])
        assert len(output.logprobs or ()) == max_tokens


PARTS = [
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        CALL_TEXT,
        '{"name": "f", "arguments": {',
        "}",
        "\n",
        "好",
        "😀",
    ),
    *("stop", "st", "op", "ab", "<", "</", '"', " "),
]


@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(
    text=st.lists(st.sampled_from(PARTS), max_size=12).map("".join),
    prompt=st.sampled_from(["", "<think>\n", "<think></think>"]),
    stop=st.sampled_from([[], ["stop"], ["\n", "op}"], ["ab", "abab"]]),
    output_format=st.sampled_from(["text", "thinking", "chat"]),
    includes_stop=st.booleans(),
    min_tokens=st.sampled_from([0, 5]),
    seed=st.integers(0, 2**30),
)
def test_tokenisation_changes_neither_texts_nor_order(
    text: str,
    prompt: str,
    stop: list[str],
    output_format: OutputFormat,
    includes_stop: bool,
    min_tokens: int,
    seed: int,
) -> None:
    """Byte tokens, marks as tokens of their own, and random words of bytes give the same; ids are a prefix."""
    params = SamplingParams(output_format=output_format, stop=stop, include_stop_str_in_output=includes_stop)
    dice = random.Random(seed)
    data = text.encode()
    ends = sorted({*(dice.randrange(len(data) + 1) for _ in range(dice.randrange(8))), 0, len(data)})
    words = ByteTokenizer(words=[data[a:b] for a, b in itertools.pairwise(ends)])
    ways = [
        (ByteTokenizer(), [*data, EOS]),
        (ByteTokenizer(), [*ByteTokenizer().encode(text, parse_special=True), EOS]),
        (words, [*range(261, 261 + len(words.words)), EOS]),
    ]
    outputs = [feed(stream(params, tokenizer, prompt), ids) for tokenizer, ids in ways]
    for output, (_, ids) in zip(outputs, ways, strict=True):
        assert output.token_ids == ids[: len(output.token_ids)]
        assert [entry.token_id for entry in output.logprobs or ()] == output.token_ids
        assert len(output.token_ids) <= output.num_generated_tokens
        if output.stop_reason is None:
            assert output.token_ids == ids
    told = [(o.text, o.reasoning_text, o.finish_reason, o.stop_reason) for o in outputs]
    assert told[0] == told[1] == told[2]
    calls = [[(call.name, call.arguments) for call in o.tool_calls] for o in outputs]
    assert calls[0] == calls[1] == calls[2]
    expected = expected_text(text, prompt, output_format)
    cut_at = min((expected.find(word) + len(word) for word in stop if word in expected), default=None)
    if cut_at is None and not (stop and calls[0]):
        assert outputs[0].text == expected
    held_back = feed(stream(SamplingParams(min_tokens=min_tokens, stop=stop), words), ways[2][1])
    assert held_back.num_generated_tokens >= min(min_tokens, len(ways[2][1]))


def expected_text(text: str, prompt: str, output_format: OutputFormat) -> str:
    if output_format == "text":
        return text
    markers = MARKERS if output_format == "chat" else ChatMarkers(thinking=MARKERS.thinking)
    phases = {"": "undecided", "<think>\n": "thinking", "<think></think>": "answer"}
    parser = OutputParser(markers, phase=cast("Any", phases[prompt]))
    return "".join(piece.text for piece in [*parser.push(text), *parser.finish()] if piece.kind == "answer")
