"""What the models' own templates write comes back as it was, with the real vocabulary and ids of Qwen3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenstack.core.grammar import Grammar
from qwenstack.core.messages import Message, ToolCall
from qwenstack.core.outputs import CompletionOutput, OutputDelta
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream
from qwenstack.engine.loading import load_tokenizer
from qwenstack.engine.thinking import CLOSING_SENTENCE
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.tokenizer import Tokenizer

pytestmark = [pytest.mark.weights, pytest.mark.xdist_group("real-weights")]

TEMPLATES = Path(__file__).parents[2] / "data" / "templates"
IM_END, CALL, CALL_END, THINK, THINK_END = 151645, 151657, 151658, 151667, 151668
QWEN3_ADDED = {151665: "<tool_response>", 151666: "</tool_response>", THINK: "<think>", THINK_END: "</think>"}
USER_DEFINED = 4
QUESTION = Message(role="user", content="天气? Answer with <think> and </think>.")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "write",
            "parameters": {
                "properties": {"path": {"type": "string"}, "lines": {"type": "array"}, "line": {"type": "integer"}}
            },
        },
    }
]
CALLS = [
    ToolCall(name="write", arguments={"path": "12", "lines": ["a<b", "\"好\"\n"], "line": 3}),
    ToolCall(name="write", arguments={"path": "\nif a:\n\tpass\n\n", "lines": [], "line": -1}),
]  # fmt: skip


def qwen3(coder_gguf: Path, template: str) -> Tokenizer:
    """Qwen2.5's vocabulary with the four tokens that Qwen3 added in its padding, and a template."""
    metadata = dict(open_checkpoint(coder_gguf).metadata)
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.token_type"])  # type: ignore[call-overload]
    for token_id, text in QWEN3_ADDED.items():
        tokens[token_id], types[token_id] = text, USER_DEFINED
    source = (TEMPLATES / f"{template}.jinja").read_text()
    changes = {"tokens": tokens, "token_type": types}
    metadata.update({f"tokenizer.ggml.{name}": value for name, value in changes.items()})
    return Tokenizer.from_gguf(metadata | {"tokenizer.chat_template": source})


def answer_of(tokenizer: Tokenizer, prompt: list[int], ids: list[int], **params: object) -> CompletionOutput:
    given = SamplingParams(**{"output_format": "chat", **params})  # type: ignore[arg-type]
    answer = AnswerStream(tokenizer, given, max_tokens=10_000, prompt_token_ids=prompt)
    output = CompletionOutput(index=0)
    waiting = list(ids)
    while output.finish_reason is None:
        forced = answer.forced_token_ids()
        released = answer.push(forced[0] if forced else waiting.pop(0), None)
        fields = {name: getattr(released, name) for name in type(released).__dataclass_fields__}
        output.add(OutputDelta(request_id="r", **fields))
    return output


@pytest.mark.parametrize("template", ["qwen3", "xml_tools"])
def test_a_turn_that_the_template_writes_is_read_as_it_was(coder_gguf: Path, template: str) -> None:
    tokenizer = qwen3(coder_gguf, template)
    turn = Message(role="assistant", content="Let me write.", tool_calls=CALLS)
    prompt = tokenizer.encode_chat([QUESTION], tools=TOOLS)
    without = tokenizer.encode_chat([QUESTION], tools=TOOLS, add_generation_prompt=False)
    whole = tokenizer.encode_chat([QUESTION, turn], tools=TOOLS, add_generation_prompt=False)
    said = whole[len(without) + 3 :]  # behind `<|im_start|>assistant\n`
    if template == "qwen3":
        assert said[0] == THINK
    else:
        assert prompt[-2] == THINK
        said = [*tokenizer.encode("hm\n"), THINK_END, *said]
    assert said.count(CALL) == said.count(CALL_END) == 2
    output = answer_of(tokenizer, prompt, said, grammar=Grammar(kind="tools", source=json.dumps(TOOLS)))
    assert output.reasoning_text == ("" if template == "qwen3" else "hm")
    assert output.text == "Let me write."
    calls = [ToolCall(name=call.name, arguments=json.loads(call.arguments)) for call in output.tool_calls]
    assert calls == CALLS
    assert output.token_ids == said[: said.index(IM_END) + 1]


def test_a_spent_budget_closes_with_the_token_of_the_mark(coder_gguf: Path) -> None:
    tokenizer = qwen3(coder_gguf, "qwen3")
    prompt = tokenizer.encode_chat([QUESTION])
    thoughts = tokenizer.encode("First, the user asks about the weather in 杭州, and")
    output = answer_of(tokenizer, prompt, [THINK, *thoughts, IM_END], thinking_budget=4)
    end = [*tokenizer.encode(CLOSING_SENTENCE), THINK_END, *tokenizer.encode("\n\n")]
    assert output.token_ids == [THINK, *thoughts[:4], *end, *thoughts[4:], IM_END]
    assert output.reasoning_text == tokenizer.decode(thoughts[:4]) + CLOSING_SENTENCE.rstrip("\n")
    assert output.num_reasoning_tokens == 4 + len(end) - 2


def test_a_prompt_with_an_empty_block_leaves_nothing_to_think(coder_gguf: Path) -> None:
    tokenizer = qwen3(coder_gguf, "qwen3")
    prompt = tokenizer.encode_chat([QUESTION], enable_thinking=False)
    output = answer_of(tokenizer, prompt, [THINK, *tokenizer.encode("x"), IM_END], thinking_budget=0)
    assert (output.text, output.reasoning_text) == ("<think>x", "")


def test_qwen25_has_calls_and_no_thinking(coder_gguf: Path) -> None:
    tokenizer = load_tokenizer(open_checkpoint(coder_gguf))
    fenced = '```json\n{"name": "write", "arguments": {}}\n```'
    text = f'<think>{fenced}<tool_call>\n{{"name": "write", "arguments": {{}}}}\n</tool_call>'
    output = answer_of(tokenizer, [], [*tokenizer.encode(text, parse_special=True), IM_END])
    assert (output.text, output.reasoning_text) == (f"<think>{fenced}", "")
    assert [(call.name, call.arguments) for call in output.tool_calls] == [("write", "{}")]
