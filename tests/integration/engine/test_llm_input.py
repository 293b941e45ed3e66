"""What an `LLM` is given and cannot use is refused with a sentence, the server's where the server refuses it too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.byte_tokenizer import ByteTokenizer
from support.tiny_gguf import QWEN3_Q8, write_tiny_gguf

from qwenstack import LLM, SamplingParams
from qwenstack.core.errors import RequestError
from qwenstack.engine.answer import AnswerStream
from qwenstack.serving.wire.chat import ChatMessageRequest
from qwenstack.tokenizer import ChatMarkers
from qwenstack.tokenizer.tokenizer_parts import builtin_template

PARAMS = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
QUESTION = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
LLAMA_LIKE = "{{ tools | tojson if tools }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", QWEN3_Q8)
    with LLM(path, num_threads=1, prefix_cache_disk_bytes=0) as llm:
        yield llm


@pytest.mark.parametrize(
    ("prompts", "shown"),
    [(5, "5"), (None, "None"), ([1, 2, 3], "1"), (["a", 2], "2"), ([None], "None"), (b"a", "b'a'"), (object, "<class")],
)
def test_a_prompt_of_another_type_is_shown_with_what_a_prompt_is(llm: LLM, prompts: Any, shown: str) -> None:
    with pytest.raises(RequestError) as refusal:
        llm.generate(prompts, PARAMS)
    assert str(refusal.value).startswith(f"A prompt is {shown}")
    assert str(refusal.value).endswith("it must be text, or token ids as `{'prompt_token_ids': [1, 2, 3]}`.")


@pytest.mark.parametrize("prompt", [{}, {"prompt": "a"}, {"prompt_token_ids": "abc"}, {"prompt_token_ids": None}])
def test_a_prompt_without_a_list_of_ids_says_so(llm: LLM, prompt: Any) -> None:
    for prompts in (prompt, ["a", prompt]):
        with pytest.raises(RequestError, match=r"it must be text, or token ids as `\{'prompt_token_ids'"):
            llm.generate(prompts, PARAMS)


@pytest.mark.parametrize("wrong", ["a", 1.5, None, [1]])
def test_what_is_no_token_id_is_shown(llm: LLM, wrong: object) -> None:
    prompt: Any = {"prompt_token_ids": [1, wrong]}
    with pytest.raises(RequestError) as refusal:
        llm.generate(prompt, PARAMS)
    assert str(refusal.value) == f"`prompt_token_ids` has {wrong!r}; each must be the id of a token, a whole number."


def test_ids_may_be_in_any_kind_of_sequence(llm: LLM) -> None:
    prompts: Any = [{"prompt_token_ids": ids} for ids in ([1, 2], (1, 2), np.array([1, 2]))]
    outputs = llm.generate(iter(prompts), PARAMS)  # pyright: ignore[reportArgumentType]
    assert [output.prompt_token_ids for output in outputs] == [[1, 2]] * 3
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_a_message_without_content_is_refused_as_the_server_does(llm: LLM, role: Any) -> None:
    with pytest.raises(RequestError) as of_server:
        ChatMessageRequest(role=role, tool_calls=None).to_message(1)
    for turn in ({"role": role}, {"role": role, "content": None}):
        with pytest.raises(RequestError) as refusal:
            llm.chat([*QUESTION, turn], PARAMS)
        assert (str(refusal.value), refusal.value.param) == (str(of_server.value), of_server.value.param)
    assert str(of_server.value) == f"`messages[1].content` is missing; a {role} message needs text."


def test_a_turn_that_only_called_a_tool_needs_no_content(llm: LLM) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "1", "content": "ok"}
    (output,) = llm.chat([*QUESTION, {"role": "assistant", "tool_calls": [call]}, result], PARAMS, tools=TOOLS)
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("messages", [5, None, "hi", ["hi"], [5], {"role": "user", "content": "hi"}, [QUESTION, None]])
def test_what_is_no_conversation_is_refused(llm: LLM, messages: Any) -> None:
    with pytest.raises(RequestError, match=r"must be (a list of messages, each|an object) with a role and content"):
        llm.chat(messages, PARAMS)


@pytest.mark.parametrize("template", ["smollm2", "chatml"])
def test_tools_that_the_template_would_drop_are_refused_as_the_server_does(tmp_path: Path, template: str) -> None:
    tokenizer: Any = ByteTokenizer(markers=ChatMarkers())
    with pytest.raises(RequestError) as of_server:
        AnswerStream(tokenizer, SamplingParams(output_format="chat"), max_tokens=1)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8, chat_template=builtin_template(template))
    with LLM(path, num_threads=1, prefix_cache_disk_bytes=0) as llm:
        assert llm.chat(QUESTION, PARAMS, tools=[])
        for ask in (llm.chat, lambda *args, **named: next(llm.stream_chat(*args, **named))):
            with pytest.raises(RequestError) as refusal:
                ask(QUESTION, PARAMS, tools=TOOLS)
            assert (str(refusal.value), refusal.value.param) == (str(of_server.value), "tools")


def test_tools_that_the_template_shows_are_taken_where_the_answer_stays_text(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", QWEN3_Q8, chat_template=LLAMA_LIKE)
    with LLM(path, num_threads=1, prefix_cache_disk_bytes=0) as llm:
        assert llm.chat(QUESTION, PARAMS, tools=TOOLS)
        with pytest.raises(RequestError, match="no format for tool calls"):
            llm.chat(QUESTION, SamplingParams(max_tokens=2, output_format="chat"), tools=TOOLS)
