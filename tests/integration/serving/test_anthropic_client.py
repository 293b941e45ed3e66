"""Anthropic's official client against a real server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest
from toy_llm import FULL, ToyLLM

from qwenstack.core.outputs import OutputDelta, ToolCallDelta
from qwenstack.serving.wire.anthropic import BlockWriter

USER: Any = [{"role": "user", "content": "用中文说你好"}]
ECHO = "echo: [user] 用中文说你好"
WEATHER: Any = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALLS = (
    'Let me look.<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'
)


@pytest.fixture
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0, timeout=20) as client:
        yield client


def test_a_message_answers(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="default", max_tokens=100, messages=USER)
    assert [(block.type, block.text) for block in answer.content if block.type == "text"] == [("text", ECHO)]
    assert (answer.role, answer.model, answer.stop_reason, answer.stop_sequence) == (
        "assistant",
        "toy/echo",
        "end_turn",
        None,
    )
    assert answer.usage.cache_read_input_tokens == 3
    assert answer.usage.output_tokens == len(ECHO.encode()) + 1


def test_a_message_streams(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="default", max_tokens=100, messages=USER) as stream:
        assert "".join(stream.text_stream) == ECHO
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(ECHO.encode()) + 1


def test_the_raw_events_have_anthropics_order(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    llm.says = f"<think>\nHm.\n</think>\n\n{CALLS}"
    events = list(client.messages.create(model="default", max_tokens=400, messages=USER, tools=[WEATHER], stream=True))
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    opened = [event.content_block.type for event in events if event.type == "content_block_start"]
    assert opened == ["thinking", "text", "tool_use", "tool_use"]
    indices = [event.index for event in events if event.type == "content_block_stop"]
    assert indices == [0, 1, 2, 3]


@pytest.mark.parametrize("streams", [False, True])
def test_tools_are_called_and_answered(client: anthropic.Anthropic, llm: ToyLLM, streams: bool) -> None:
    llm.says = CALLS
    asked: Any = {"model": "default", "max_tokens": 200, "messages": USER, "tools": [WEATHER]}
    if streams:
        with client.messages.stream(**asked) as stream:
            answer: Any = stream.get_final_message()
    else:
        answer = client.messages.create(**asked)
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "北京"}),
    ]
    assert (answer.content[0].text, answer.stop_reason) == ("Let me look.", "tool_use")

    llm.says = None
    results = [
        {"type": "tool_result", "tool_use_id": calls[0].id, "content": "18 °C"},
        {
            "type": "tool_result",
            "tool_use_id": calls[1].id,
            "content": [{"type": "text", "text": "no"}],
            "is_error": True,
        },
        {"type": "text", "text": "And?"},
    ]
    turns: Any = [*USER, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    client.messages.create(model="default", max_tokens=100, messages=turns, tools=[WEATHER])
    seen = bytes(llm.prompts[-1]).decode().splitlines()
    assert seen[-4:] == ["[assistant] Let me look.", "[tool] 18 °C", "[tool] Error: no", "[user] And?"]


@pytest.mark.parametrize("streams", [False, True])
def test_text_after_a_call_does_not_hide_it(client: anthropic.Anthropic, llm: ToyLLM, streams: bool) -> None:
    llm.says = f"{CALLS}\nDone."
    asked: Any = {"model": "default", "max_tokens": 400, "messages": USER, "tools": [WEATHER]}
    if streams:
        with client.messages.stream(**asked) as stream:
            answer: Any = stream.get_final_message()
    else:
        answer = client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"


def test_the_end_of_a_call_comes_before_what_follows_it() -> None:
    writer = BlockWriter()
    start = ToolCallDelta(index=0, name="f", arguments='{"a": 1')
    events: Any = writer.write(OutputDelta(request_id="r", text="Look.", tool_calls=[start]))
    more = [ToolCallDelta(index=0, arguments="}"), ToolCallDelta(index=1, name="g", arguments="{}")]
    events += writer.write(OutputDelta(request_id="r", text="And", tool_calls=more))
    events += writer.close()
    opened = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert opened == ["text", "tool_use", "text", "tool_use"]
    grown: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            delta = event["delta"]
            grown[event["index"]] = grown.get(event["index"], "") + (delta.get("text") or delta.get("partial_json"))
    assert grown == {0: "Look.", 1: '{"a": 1}', 2: "And", 3: "{}"}
    assert writer.calls_tools


def test_what_cannot_be_done_is_refused(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        client.messages.create(model="default", max_tokens=9, messages=USER, tool_choice={"type": "any"})
    with pytest.raises(anthropic.BadRequestError, match="assistant"):
        client.messages.create(model="default", max_tokens=9, messages=[*USER, {"role": "assistant", "content": "{"}])


def test_a_call_that_is_cut_is_left_out(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    llm.says = CALLS[:-40]
    answer = client.messages.create(model="default", max_tokens=200, messages=USER, tools=[WEATHER])
    assert [block.type for block in answer.content] == ["text", "tool_use"]


@pytest.mark.parametrize(
    ("choice", "required", "parallel"),
    [
        ({"type": "auto"}, None, True),
        ({"type": "any"}, "*", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "*", False),
        ({"type": "tool", "name": "get_weather"}, "get_weather", True),
    ],
)
def test_the_choice_of_tools_reaches_the_grammar(
    client: anthropic.Anthropic, llm: ToyLLM, choice: Any, required: str | None, parallel: bool
) -> None:
    client.messages.create(model="default", max_tokens=9, messages=USER, tools=[WEATHER], tool_choice=choice)
    grammar = llm.seen[-1].grammar
    assert grammar is not None
    assert (grammar.kind, grammar.required_tool, grammar.parallel_tool_calls) == ("tools", required, parallel)


def test_no_choice_hides_the_tools(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    client.messages.create(model="default", max_tokens=9, messages=USER, tools=[WEATHER], tool_choice={"type": "none"})
    assert llm.seen[-1].grammar is None
    assert b"[tools]" not in bytes(llm.prompts[-1])


def test_thinking_is_shown_and_sent_back(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    llm.says = "<think>\nHm.\n</think>\n\nYes."
    answer = client.messages.create(
        model="default", max_tokens=300, messages=USER, thinking={"type": "enabled", "budget_tokens": 200}
    )
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert llm.seen[-1].thinking_budget == 200
    assert bytes(llm.prompts[-1]).startswith(b"[thinking] True")
    turns: Any = [*USER, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "more"}]
    client.messages.create(model="default", max_tokens=100, messages=turns)
    assert bytes(llm.prompts[-1]).startswith(b"[thinking] False")


def test_system_stops_and_sampling_go_through(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    answer = client.messages.create(
        model="default",
        max_tokens=100,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=USER,
        stop_sequences=["[user]"],
        extra_body={"temperature": 0.5, "top_k": 7, "top_p": 0.9},
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "[user]")
    assert bytes(llm.prompts[-1]).startswith(b"[thinking] False\n[system] Be brief.\n[user]")
    assert (llm.seen[-1].temperature, llm.seen[-1].top_k, llm.seen[-1].top_p) == (0.5, 7, 0.9)
    turns: Any = [*USER, {"role": "system", "content": "Now in French."}, *USER]
    client.messages.create(model="default", max_tokens=3, messages=turns)
    assert b"\n[system] Now in French.\n" in bytes(llm.prompts[-1])
    short = client.messages.create(model="default", max_tokens=3, messages=USER)
    assert short.stop_reason == "max_tokens"


def test_a_schema_reaches_the_grammar(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    shaped: Any = {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    client.messages.create(model="default", max_tokens=9, messages=USER, output_config=shaped)
    grammar = llm.seen[-1].grammar
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.source)) == ("json_schema", schema)
    with pytest.raises(anthropic.BadRequestError, match="output_config"):
        client.messages.create(model="default", max_tokens=9, messages=USER, output_config=shaped, tools=[WEATHER])


def test_a_tool_that_no_object_fits_is_refused_by_its_fields_name(client: anthropic.Anthropic) -> None:
    tool: Any = {"name": "f", "input_schema": {"type": "string"}}
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].input_schema"):
        client.messages.create(model="default", max_tokens=9, messages=USER, tools=[tool])


def test_effort_bounds_thinking_that_is_left_to_the_model(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    low: Any = {"effort": "low"}
    for thinking, budget in (({"type": "adaptive"}, 1024), ({"type": "disabled"}, None)):
        client.messages.create(
            model="default",
            max_tokens=9,
            messages=USER,
            output_config=low,
            thinking=thinking,  # type: ignore[arg-type]
        )
        assert llm.seen[-1].thinking_budget == budget


def test_tokens_are_counted(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    counted = client.messages.count_tokens(model="default", messages=USER, system="Be brief.").input_tokens
    client.messages.create(model="default", max_tokens=3, messages=USER, system="Be brief.")
    assert counted == len(llm.prompts[-1])
    long: Any = [{"role": "user", "content": "x" * 5000}]
    assert client.messages.count_tokens(model="default", messages=long).input_tokens > 5000, "too long is counted too"


def test_errors_are_the_clients_own_types(client: anthropic.Anthropic, llm: ToyLLM) -> None:
    with pytest.raises(anthropic.NotFoundError, match="claude") as missing:
        client.messages.create(model="claude-opus", max_tokens=9, messages=USER)
    assert missing.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": missing.value.body["error"]["message"]},
        "request_id": missing.value.request_id,
    }
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="default", max_tokens=0, messages=USER)
    with pytest.raises(anthropic.BadRequestError, match="get_whether"):
        client.messages.create(
            model="default",
            max_tokens=9,
            messages=USER,
            tools=[WEATHER],
            tool_choice={"type": "tool", "name": "get_whether"},
        )
    llm.error = FULL
    with pytest.raises(anthropic.APIStatusError) as full:
        client.messages.create(model="default", max_tokens=9, messages=USER, stream=True)
    assert full.value.status_code == 503
    llm.error, llm.fail_after = None, 3
    with pytest.raises(anthropic.APIError, match="model failed"):
        list(client.messages.create(model="default", max_tokens=99, messages=USER, stream=True))


def test_every_answer_has_the_request_id_where_the_client_looks_for_it(
    client: anthropic.Anthropic, llm: ToyLLM
) -> None:
    asked: Any = {"model": "default", "max_tokens": 99, "messages": USER}
    answer = client.messages.create(**asked)
    assert answer._request_id is not None
    assert answer.id == f"msg_{answer._request_id}"
    assert client.messages.count_tokens(model="default", messages=USER)._request_id is not None
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_message().id == f"msg_{stream.request_id}"
    raw = client.messages.with_raw_response.create(**asked)
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    llm.fail_after = 3
    with pytest.raises(anthropic.APIError) as failed:
        list(client.messages.create(**asked, stream=True))
    body: Any = failed.value.body
    assert body["request_id"] in body["error"]["message"]


def test_what_is_not_here_is_told_in_the_clients_words(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.batches.list()
    body: Any = missing.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
    assert body["request_id"] == missing.value.request_id is not None


def test_the_key_comes_in_its_own_header(serve: Callable[..., contextlib.AbstractContextManager[str]]) -> None:
    with serve(api_keys=("sk-right-key",)) as url:
        with anthropic.Anthropic(base_url=url, api_key="sk-right-key", max_retries=0) as owner:
            assert owner.messages.create(model="default", max_tokens=100, messages=USER).stop_reason == "end_turn"
        with (
            anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as stranger,
            pytest.raises(anthropic.AuthenticationError),
        ):
            stranger.messages.create(model="default", max_tokens=9, messages=USER)
        two = httpx.get(f"{url}/v1/models", headers=[("X-Api-Key", "a"), ("X-Api-Key", "sk-right-key")])
        assert two.status_code == 400
