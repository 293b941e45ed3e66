"""Thinking, tool calls and demanded formats over the chat endpoint, on a model that says what it is told."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.core.grammar import MAX_GRAMMAR_CHARS, Grammar

pytestmark = pytest.mark.anyio

URL = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "天气", "parameters": SCHEMA}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "杭州"}}\n</tool_call>'
FUNCTION = {"name": "weather", "arguments": '{"city": "杭州"}'}


def ask(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "天气?"}], **fields}


async def answer(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    response = await client.post(URL, json=ask(**fields))
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **fields: object) -> list[dict[str, Any]]:
    response = await client.post(URL, json=ask(**fields, stream=True, stream_options={"include_usage": True}))
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_thinking_comes_apart_from_the_answer(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "<think>\nhm\n</think>\n\n晴"
    body = await answer(client)
    message = {"role": "assistant", "content": "晴", "refusal": None, "reasoning_content": "hm"}
    assert body["choices"][0]["message"] == message
    assert body["usage"]["completion_tokens"] == len(llm.says.encode()) + 1
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("\nhm\n</think")
    *chunks, last = await stream(client)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert "".join(delta.get("content", "") for delta in deltas) == "晴"
    assert last["usage"] == body["usage"]


async def test_a_tool_call_has_an_id_and_ends_the_answer(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = f"{CALL}\n{CALL}"
    choice = (await answer(client, tools=[TOOL]))["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [call["function"] for call in calls] == [FUNCTION, FUNCTION]
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in calls)
    assert calls[0]["id"] != calls[1]["id"]


async def test_a_streamed_call_brings_its_name_first_and_its_arguments_in_pieces(
    client: httpx.AsyncClient, llm: ToyLLM
) -> None:
    llm.says = f"Let me look.\n{CALL}"
    *chunks, _ = await stream(client, tools=[TOOL], tool_choice="auto", parallel_tool_calls=False)
    choices = [chunk["choices"][0] for chunk in chunks]
    first, *rest = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert first["function"]["name"] == "weather"
    assert first["type"] == "function"
    assert first["id"].startswith("call_")
    assert len(rest) > 5
    assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in rest)
    grammar = llm.seen[-1].grammar
    assert grammar is not None
    assert not grammar.parallel_tool_calls
    assert "".join(call["function"]["arguments"] for call in [first, *rest]) == FUNCTION["arguments"]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Let me look."
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_a_call_that_is_cut_off_ends_with_length(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = CALL
    choice = (await answer(client, tools=[TOOL], max_tokens=50))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert FUNCTION["arguments"].startswith(choice["message"]["tool_calls"][0]["function"]["arguments"])


async def test_without_tools_the_mark_of_a_call_is_text(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = CALL
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        choice = (await answer(client, **fields))["choices"][0]
        assert choice["message"]["content"] == CALL
        assert choice["finish_reason"] == "stop"


async def test_a_broken_call_is_text(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "<tool_call>weather(杭州)</tool_call>"
    choice = (await answer(client, tools=[TOOL]))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (llm.says, "stop")


async def test_a_spent_budget_makes_the_model_answer(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "<think>ab" + "c" * 50
    message = (await answer(client, thinking_budget=2))["choices"][0]["message"]
    assert message["reasoning_content"].startswith("ab\n\nConsidering the limited time")
    assert message["content"] == "c" * 50


async def test_tokens_that_a_stop_string_cuts_away_are_counted(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "abcSTOP"
    for stop, content in ((["STOP"], "abc"), (["b"], "a")):
        body = await answer(client, stop=stop)
        assert body["choices"][0]["message"]["content"] == content
        assert body["usage"]["completion_tokens"] == len(content) + len(stop[0])


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(kind="json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "s", "schema": SCHEMA, "strict": True},
                }
            },
            Grammar(kind="json_schema", source=json.dumps(SCHEMA, separators=(",", ":"))),
        ),
        (
            {"tools": [TOOL], "tool_choice": "none", "response_format": {"type": "json_object"}},
            Grammar(kind="json_object"),
        ),
    ],
)
async def test_the_format_becomes_a_grammar(
    client: httpx.AsyncClient, llm: ToyLLM, fields: dict[str, object], grammar: Grammar | None
) -> None:
    await answer(client, **fields)
    assert (llm.seen[0].grammar, llm.seen[0].output_format) == (grammar, "thinking")


@pytest.mark.parametrize(
    ("choice", "required_tool"),
    [
        (None, None),
        ("auto", None),
        ("required", "*"),
        ({"type": "function", "function": {"name": "weather"}}, "weather"),
    ],
)
async def test_tools_become_a_grammar_whoever_chooses(
    client: httpx.AsyncClient, llm: ToyLLM, choice: object, required_tool: str | None
) -> None:
    await answer(client, tools=[TOOL], **({} if choice is None else {"tool_choice": choice}))
    (params,) = llm.seen
    assert params.output_format == "chat"
    assert params.grammar is not None
    assert (params.grammar.kind, params.grammar.required_tool) == ("tools", required_tool)
    assert json.loads(params.grammar.source) == [TOOL]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "time"}}},
            "tool_choice",
            ["time", "tools"],
        ),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format", ["json_object", "tools"]),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", ["missing"]),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"description": "x" * (64 << 10)}}}},
            "response_format",
            [str(MAX_GRAMMAR_CHARS)],
        ),
    ],
)
async def test_a_demand_that_cannot_be_met_is_refused(
    client: httpx.AsyncClient, fields: dict[str, object], param: str, words: list[str]
) -> None:
    response = await client.post(URL, json=ask(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": ["array", "null"]},
        {"type": None},
        {"const": 5},
        {"enum": ["a", ["b"], None]},
        {"type": "object", "enum": []},
        False,
    ],
)
@pytest.mark.parametrize("choice", ["required", "auto"])
async def test_a_tool_whose_arguments_can_be_no_object_is_refused(
    client: httpx.AsyncClient, llm: ToyLLM, schema: object, choice: str
) -> None:
    tools = [TOOL, {"type": "function", "function": {"name": "f", "parameters": schema}}]
    response = await client.post(URL, json=ask(tools=tools, tool_choice=choice))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == "tools[1].function.parameters"
    assert "tools[1].function.parameters" in error["message"]
    if isinstance(schema, dict):
        assert "arguments of a call are an object" in error["message"]
    assert not llm.seen


async def test_the_refusal_of_a_tool_has_the_name_that_its_field_has_in_the_api(client: httpx.AsyncClient) -> None:
    schema, turns = {"type": "string"}, [{"role": "user", "content": "天气?"}]
    tool = {"type": "function", "name": "f", "parameters": schema}
    response = await client.post("/v1/responses", json={"input": turns, "tools": [tool], "tool_choice": "required"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools[0].parameters")
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    response = await client.post("/api/chat", json={"model": "toy/echo", "messages": turns, "tools": [tool]})
    assert response.status_code == 400
    assert "`tools[0].function.parameters" in response.json()["error"]


@pytest.mark.parametrize(
    "schema",
    [None, {}, {"type": ["object", "null"]}, {"anyOf": [{"type": "string"}, SCHEMA]}, {"enum": [1, {"a": 1}]}],
)
async def test_a_tool_whose_arguments_may_be_an_object_is_taken(
    client: httpx.AsyncClient, llm: ToyLLM, schema: object
) -> None:
    await answer(client, tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert llm.seen


@pytest.mark.parametrize(
    "field",
    ["chat_parser", "tool_call_parser", "reasoning_parser", "parser", "output_format", "chat_format", "grammar"],
)
async def test_sec_29_a_client_cannot_choose_a_parser(client: httpx.AsyncClient, llm: ToyLLM, field: str) -> None:
    for body in (ask(**{field: "hermes"}), ask(chat_template_kwargs={field: "hermes"})):
        response = await client.post(URL, json=body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "unknown_parameter"
    assert llm.seen == []
