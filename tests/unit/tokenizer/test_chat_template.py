"""Our renderer and our own templates against transformers' renderer with the official templates, byte for byte."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from qwenstack.core.errors import ModelFormatError, RequestError
from qwenstack.core.messages import Message, ToolCall
from qwenstack.tokenizer import Tokenizer
from qwenstack.tokenizer.chat_template import MAX_SOURCE_CHARS, ChatTemplate
from qwenstack.tokenizer.tokenizer_parts import builtin_template

NUM_CONVERSATIONS = 600
OFFICIAL_SHA256 = {
    "qwen3": "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8",
    "qwen2.5": "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
    "smollm2": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
}
FRAGMENTS = [
    *(
        "Hello",
        "你好，",
        "世界。",
        "\n",
        "\n\n",
        " ",
        '"quoted"',
        "{'a': 1}",
        "é👍🏽",
        "<b>&amp;</b>",
        "\\n",
        "/no_think",
    ),
    *(
        "<think>",
        "</think>",
        "<think>\nhm\n</think>\n\n",
        "<tool_response>",
        "</tool_response>",
        "<|im_end|>",
        "\u2028",
    ),
]


class Conversations:
    """Random conversations, in our words and in OpenAI's."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def text(self) -> str:
        return "".join(self.rng.choice(FRAGMENTS) for _ in range(self.rng.randint(0, 5)))

    def value(self, depth: int = 0) -> object:
        simple = [self.text(), self.rng.randint(-9, 9), 1.5, True, None]
        if depth < 2 and self.rng.random() < 0.3:
            return {self.text(): self.value(depth + 1), "键": [self.value(depth + 1)]}
        return self.rng.choice(simple)

    def tools(self) -> list[dict[str, object]] | None:
        if self.rng.random() < 0.5:
            return None
        parameters = {"type": "object", "properties": {"city": {"type": "string", "description": self.text()}}}
        function = {"name": "get_weather", "description": self.text(), "parameters": parameters}
        return [{"type": "function", "function": function}] * self.rng.randint(1, 3)

    def message(self) -> Message:
        match self.rng.choice(["user", "user", "assistant", "assistant", "tool", "system"]):
            case "assistant":
                calls = [ToolCall(name="get_weather", arguments=self.arguments(), id="1")] * self.rng.randint(0, 2)
                reasoning = self.text() if self.rng.random() < 0.4 else None
                return Message(role="assistant", content=self.text(), reasoning_content=reasoning, tool_calls=calls)
            case "tool":
                return Message(role="tool", content=self.text(), tool_call_id="1")
            case "system":
                return Message(role="system", content=self.text())
            case _:
                return Message(role="user", content=self.text())

    def arguments(self) -> dict[str, object]:
        return {name: self.value() for name in ("city", "单位", "n")[: self.rng.randint(0, 3)]}

    def conversation(self) -> list[Message]:
        return [self.message() for _ in range(self.rng.randint(1, 8))]

    def options(self) -> dict[str, bool]:
        thinking = self.rng.choice([None, True, False])
        options = {"add_generation_prompt": self.rng.random() < 0.7}
        return options if thinking is None else {**options, "enable_thinking": thinking}


def openai_message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        fields["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        fields["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def render_by_transformers(
    template: str, messages: list[Message], tools: list[dict[str, object]] | None, options: Mapping[str, object]
) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [openai_message(message) for message in messages]
    return render_jinja_template([chat], tools=tools, chat_template=template, **options)[0][0]


def tokenizer_with(metadata: Mapping[str, object], template: str) -> Tokenizer:
    return Tokenizer.from_gguf({**metadata, "tokenizer.chat_template": template})


@pytest.mark.parametrize("name", OFFICIAL_SHA256)
def test_conversations_equal_transformers_with_the_official_template(
    name: str, tiny_metadata: Mapping[str, object], official_template: Callable[[str], str]
) -> None:
    official = official_template(name)
    assert hashlib.sha256(official.encode()).hexdigest() == OFFICIAL_SHA256[name]
    with_official = tokenizer_with(tiny_metadata, official)
    with_builtin = tokenizer_with(tiny_metadata, builtin_template(name))
    make = Conversations(seed=hash_of(name))
    for _ in range(NUM_CONVERSATIONS):
        messages, tools, options = make.conversation(), make.tools(), make.options()
        expected = render_by_transformers(official, messages, tools, options)
        assert with_official.apply_chat_template(messages, tools=tools, **options) == expected
        assert with_builtin.apply_chat_template(messages, tools=tools, **options) == expected


def hash_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


@pytest.mark.parametrize(
    ("thinking", "ending"),
    [
        (None, "<|im_start|>assistant\n"),
        (True, "<|im_start|>assistant\n"),
        (False, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_qwen3_thinking_is_a_switch_with_three_positions(tiny: Tokenizer, thinking: bool | None, ending: str) -> None:
    text = tiny.apply_chat_template([Message(role="user", content="你好")], enable_thinking=thinking)
    assert text == f"<|im_start|>user\n你好<|im_end|>\n{ending}"


def test_qwen3_forgets_thoughts_of_earlier_questions_and_keeps_those_of_a_tool_run(tiny: Tokenizer) -> None:
    call = ToolCall(name="f", arguments={"城市": "北京"})
    text = tiny.apply_chat_template(
        [
            Message(role="user", content="one"),
            Message(role="assistant", content="1", reasoning_content="old thought"),
            Message(role="user", content="two"),
            Message(role="assistant", reasoning_content="new thought", tool_calls=[call]),
            Message(role="tool", content="r1"),
            Message(role="tool", content="r2"),
        ]
    )
    assert "old thought" not in text
    assert "<think>\nnew thought\n</think>" in text
    assert '<tool_call>\n{"name": "f", "arguments": {"城市": "北京"}}\n</tool_call>' in text
    assert "<tool_response>\nr1\n</tool_response>\n<tool_response>\nr2\n</tool_response><|im_end|>" in text


def test_the_built_in_template_follows_from_the_vocabulary(tiny_metadata: Mapping[str, object]) -> None:
    def first_line_for(dropped: set[str], added: str) -> str:
        tokens = [token for token in tiny_metadata["tokenizer.ggml.tokens"] if token not in dropped]
        tokens = [added if token == "<|vision_pad|>" else token for token in tokens]
        types = [
            kind
            for token, kind in zip(
                tiny_metadata["tokenizer.ggml.tokens"], tiny_metadata["tokenizer.ggml.token_type"], strict=True
            )
            if token not in dropped
        ]
        ids = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.eos_token_id": 0}
        tokenizer = Tokenizer.from_gguf({**tiny_metadata, **ids})
        return tokenizer.apply_chat_template([Message(role="user", content="hi")]).partition("<|im_end|>")[0]

    thinking, calling = {"<think>"}, {"<think>", "<tool_call>"}
    assert first_line_for(set(), "<|x|>") == "<|im_start|>user\nhi"
    assert "You are Qwen" in first_line_for(thinking, "<|x|>")
    assert "named SmolLM" in first_line_for(calling, "<gh_stars>")
    assert first_line_for(calling, "<|x|>") == "<|im_start|>user\nhi"
    with pytest.raises(RequestError, match="no chat template"):
        first_line_for({*calling, "<|im_start|>"}, "<|x|>")


def test_a_conversation_that_the_template_refuses_is_a_request_error(tiny_metadata: Mapping[str, object]) -> None:
    tokenizer = tokenizer_with(tiny_metadata, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="refuses these messages: roles must alternate") as caught:
        tokenizer.apply_chat_template([Message(role="user", content="hi")])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("x" * (MAX_SOURCE_CHARS + 1), "65537 characters; at most 65536"),
    ],
)
def test_a_broken_template_is_a_model_format_error_that_says_why(
    template: str, reason: str, tiny_metadata: Mapping[str, object]
) -> None:
    tokenizer = tokenizer_with(tiny_metadata, template)
    with pytest.raises(ModelFormatError, match=reason):
        tokenizer.apply_chat_template([Message(role="user", content="hi")])


def test_messages_must_be_there_and_plain(tiny: Tokenizer) -> None:
    hi = Message(role="user", content="hi")
    with pytest.raises(RequestError, match="`messages` is empty"):
        tiny.apply_chat_template([])
    with pytest.raises(RequestError, match="only what JSON can say"):
        tiny.apply_chat_template([hi], tools=[{"function": object()}])
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"more": deep}
    with pytest.raises(RequestError, match="more than 60 deep") as caught:
        tiny.apply_chat_template([hi], tools=[deep])
    assert caught.value.param == "tools"
    with pytest.raises(RequestError, match="surrogate"):
        tiny.apply_chat_template([Message(role="user", content="\udc00")])


def test_what_other_templates_use_works_as_in_transformers() -> None:
    """Constructs of templates in the wild, one line each."""
    source = """
{%- macro say(role, text='') %}[{{ role | upper }}: {{ text | trim }}]{% endmacro %}
{%- set ns = namespace(count=0) %}
{%- for message in messages | selectattr('role', 'equalto', 'user') | list %}
    {%- set ns.count = ns.count + 1 %}
    {{- say(message['role'], message.content) }}{% if loop.last %}!{% else %}, {% endif %}
{%- endfor %}
{%- for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}{% break %}{% endfor %}
{%- generation %}{{ ns.count }}{% endgeneration %}
{%- set block %}{{ messages[::-1][0].content[:2] ~ 1.5 ~ none ~ [1, 'a'] }}{% endset %}{{ block }}
{%- for key, value in {'b': 2, 'a': [true]} | items %}{{ key }}={{ value | tojson }};{% endfor %}
{%- if messages[0].missing is not defined and messages is iterable and messages[0] is mapping %}ok{% endif %}
{{- ' a,b '.strip().split(',') | join('/') ~ ('x' in 'xyz') ~ messages | length ~ (7 // 2) ~ ('%' in 'a%') }}
{{- messages[0].get('content', 'none') | replace('h', 'H') | default('d') }}{{ range(3) | list }}
{{- tools | default([], true) | tojson(indent=2) }}{{ 'abc' | first }}{{ [1, 2] | last }}{{ '7' | int + 1 }}
"""
    messages = [Message(role="user", content=" hi "), Message(role="system"), Message(role="user", content="héllo")]
    variables = {"messages": [openai_message(message) for message in messages], "tools": None}
    expected = render_by_transformers(source, messages, None, {"add_generation_prompt": False})
    assert ChatTemplate(source).render({**variables, "add_generation_prompt": False}) == expected
