from __future__ import annotations

import json

import httpx
import pytest
from toy_llm import FULL, ToyLLM

from qwenstack.core.errors import EngineError
from qwenstack.core.outputs import OutputDelta, ToolCallDelta
from qwenstack.serving.wire.chat import ChatCompletionRequest, write_deltas

pytestmark = pytest.mark.anyio

URL = "/v1/chat/completions"


def ask(content: object = "你好", **fields: object) -> dict[str, object]:
    return {"model": "toy/echo", "messages": [{"role": "user", "content": content}], **fields}


def events(response: httpx.Response) -> list[dict]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_an_answer_has_the_text_the_reason_and_the_counts(client: httpx.AsyncClient) -> None:
    body = (await client.post(URL, json=ask("你好"))).json()
    expected = "echo: [user] 你好"
    assert body["object"] == "chat.completion"
    assert body["model"] == "toy/echo"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt_tokens, completion_tokens = len("[user] 你好".encode()), len(expected.encode()) + 1
    assert body["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_a_stream_says_the_same_as_the_whole_answer(client: httpx.AsyncClient) -> None:
    whole = (await client.post(URL, json=ask("流式 stream"))).json()
    response = await client.post(URL, json=ask("流式 stream", stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_what_openais_client_adds_to_an_answer_may_come_back(client: httpx.AsyncClient) -> None:
    function = {"name": "f", "arguments": "", "parsed_arguments": {"city": "北京"}}
    earlier = {
        "role": "assistant",
        "content": '{"a": 1}',
        "parsed": {"a": 1},
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    turns = [earlier, {"role": "tool", "tool_call_id": "c", "content": "7"}, {"role": "user", "content": "x"}]
    body = {"model": "default", "messages": turns, "verbosity": "medium", "prompt_cache_key": "k"}
    assert (await client.post(URL, json=body | {"safety_identifier": "s"})).status_code == 200


def test_a_chunk_has_one_piece_of_one_call() -> None:
    deltas = [
        ToolCallDelta(index=0, name="f", arguments='{"ci'),
        ToolCallDelta(index=0, arguments='ty":'),
        ToolCallDelta(index=1, name="g", arguments=""),
        ToolCallDelta(index=1, arguments="{}"),
    ]
    written = write_deltas(OutputDelta(request_id="r", index=0, text="x", tool_calls=deltas))
    calls = [call for delta in written for call in delta.get("tool_calls", [])]
    assert [(call["index"], call["function"].get("name"), call["function"]["arguments"]) for call in calls] == [
        (0, "f", '{"city":'),
        (1, "g", "{}"),
    ]
    assert [delta.get("content") for delta in written] == ["x", None]
    assert write_deltas(OutputDelta(request_id="r", index=0)) == []


async def test_a_call_that_was_cut_off_may_come_back(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"city'}}
    turns = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "wrong"}]
    assert (await client.post(URL, json={"model": "default", "messages": turns})).status_code == 200
    items = [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"city'},
        {"type": "function_call_output", "call_id": "c", "output": "wrong"},
    ]
    answer = await client.post("/v1/responses", json={"model": "default", "input": items, "store": False})
    assert answer.status_code == 200


async def test_several_answers_carry_their_index(client: httpx.AsyncClient) -> None:
    whole = (await client.post(URL, json=ask(n=3, seed=5))).json()["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in whole}) > 1
    chunks = events(await client.post(URL, json=ask(n=3, seed=5, stream=True)))
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == whole[index]["message"]["content"]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "stop"


async def test_max_tokens_ends_with_length(client: httpx.AsyncClient) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        choice = (await client.post(URL, json=ask("hi", **{name: 4}))).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("echo", "length")


async def test_logprobs_have_the_bytes_of_pieces_of_characters(client: httpx.AsyncClient) -> None:
    body = (await client.post(URL, json=ask("好", logprobs=True, top_logprobs=3))).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "echo: [user] 好"
    assert content[0] == {
        "token": "e",
        "logprob": -0.5,
        "bytes": [101],
        "top_logprobs": [
            {"token": "e", "logprob": -0.5, "bytes": [101]},
            {"token": "f", "logprob": -1.5, "bytes": [102]},
            {"token": "g", "logprob": -9999.0, "bytes": [103]},
        ],
    }
    assert content[-2]["token"] == "bytes:\\xbd"


async def test_streamed_logprobs_are_those_of_the_whole_answer(client: httpx.AsyncClient) -> None:
    request = ask("好", logprobs=True, top_logprobs=1)
    whole = (await client.post(URL, json=request)).json()["choices"][0]["logprobs"]["content"]
    chunks = events(await client.post(URL, json=request | {"stream": True}))
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for part in parts if part for entry in part["content"]] == whole


async def test_parameters_reach_the_model(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    fields = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.1,
        "seed": 7,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "stop": "!",
        "stop_token_ids": [5],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "logit_bias": {"7": -100},
    }
    response = await client.post(URL, json=ask(**fields, user="u", metadata={"a": "b"}, store=False))
    assert response.status_code == 200
    (params,) = llm.seen
    for name, value in (fields | {"top_k": 0, "stop": ["!"], "logit_bias": {7: -100}}).items():
        assert getattr(params, name) == value, name
    assert params.max_tokens is None


async def test_a_conversation_with_tools_and_thinking_reaches_the_template(
    client: httpx.AsyncClient, llm: ToyLLM
) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "杭州"}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "user", "content": "天气?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    body = {"messages": messages, "tools": [tool], "chat_template_kwargs": {"enable_thinking": False}}
    assert (await client.post(URL, json=body)).status_code == 200
    told = bytes(llm.prompts[0]).decode()
    assert told == "[thinking] False\n[tools] 1\n[system] one\ntwo\n[user] 天气?\n[assistant] \n[tool] sunny"


def test_tools_reach_the_template_as_they_were_sent() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "default": None}}, "required": []}
    function = {"name": "f", "description": "查天气", "parameters": schema}
    tool = {"type": "function", "function": function}
    body = ask(tools=[{"type": "function", "function": function | {"strict": True}}])
    assert ChatCompletionRequest.model_validate(body).to_tools() == [tool]


async def test_the_tools_stay_away_where_the_choice_is_none(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    await client.post(URL, json=ask(tools=[tool], tool_choice="none"))
    assert b"[tools]" not in bytes(llm.prompts[0])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"n": 1_000_000}, "n", ["1000000", "8"]),
        ({"max_tokens": -1}, "max_tokens", ["-1", "1"]),
        ({"max_tokens": 513}, "max_tokens", ["513", "512"]),
        ({"max_completion_tokens": 513}, "max_completion_tokens", ["513", "512"]),
        ({"temperature": 3}, "temperature", ["3", "2"]),
        ({"temperature": True}, "temperature", ["True", "number"]),
        ({"n": True}, "n", ["True", "integer"]),
        ({"top_p": 0}, "top_p", ["0"]),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", ["21", "20"]),
        ({"top_logprobs": 2}, "top_logprobs", ["logprobs"]),
        ({"messages": []}, "messages", ["1"]),
        ({"messages": [{"role": "user", "content": "x"}] * 1025}, "messages", ["1024"]),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", ["king", "user"]),
        ({"messages": [{"role": "user"}]}, "messages[0].content", ["missing"]),
        ({"messages": [{"content": "x"}]}, "messages[0].role", ["missing"]),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", ["607", "512"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            ["image_url", "text"],
        ),
        ({"stop": ["a"] * 17}, "stop", ["16"]),
        ({"stop": ["a" * 257]}, "stop[0]", ["256"]),
        ({"stop": ""}, "stop", ["''"]),
        ({"logit_bias": {"x": 1}}, "logit_bias", ["x"]),
        ({"logit_bias": {"999": 1}}, "logit_bias", ["999", "256"]),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", ["300"]),
        ({"stop_token_ids": [-1]}, "stop_token_ids", ["-1"]),
        ({"seed": 2**63}, "seed", ["9223372036854775807"]),
        ({"response_format": {"type": "yaml"}}, "response_format", ["yaml", "json_object", "text"]),
        ({"tool_choice": "required"}, "tool_choice", ["tools"]),
        ({"tool_choice": "always"}, "tool_choice", ["always", "auto"]),
        ({"thinking_budget": -1}, "thinking_budget", ["-1", "0"]),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", ["not a field"]),
        ({"temprature": 1}, "temprature", ["not a field"]),
        ({"store": True}, "store", ["True"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["stream"]),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", ["max_completion_tokens"]),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens", ["5", "2"]),
        ({"model": 5}, "model", ["5", "string"]),
    ],
)
async def test_a_wrong_field_is_named_with_its_value_and_limit(
    client: httpx.AsyncClient, fields: dict[str, object], param: str, words: list[str]
) -> None:
    response = await client.post(URL, json=ask() | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    for word in (param, *words):
        assert word in error["message"]


async def test_wrong_arguments_of_a_past_call_are_named(client: httpx.AsyncClient) -> None:
    for arguments in ("[1]", '"x"'):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        response = await client.post(URL, json={"messages": [{"role": "assistant", "tool_calls": [call]}]})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages[0].tool_calls[0].function.arguments"


async def test_another_model_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json=ask(model="gpt-5"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "toy/echo" in response.json()["error"]["message"]
    assert (await client.post(URL, json=ask(model="default"))).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_says_when_to_come_back(client: httpx.AsyncClient, llm: ToyLLM, stream: bool) -> None:
    llm.error = FULL
    response = await client.post(URL, json=ask(stream=stream))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["message"] == str(FULL)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [EngineError("secret /dev/shm/x"), ZeroDivisionError("secret")])
async def test_sec_24_a_failure_of_ours_tells_nothing_but_the_request_id(
    client: httpx.AsyncClient, llm: ToyLLM, stream: bool, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    llm.error = error
    response = await client.post(URL, json=ask("a private question", stream=stream))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    assert response.headers["x-request-id"] in caplog.text
    assert type(error).__name__ in caplog.text
    assert "private question" not in caplog.text
    assert llm.num_open == 0


async def test_a_failure_in_mid_stream_is_an_error_event_and_the_end(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.fail_after = 3
    response = await client.post(URL, json=ask(stream=True))
    assert response.status_code == 200
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "ech"
    assert last["error"]["code"] == "engine_error"
    assert "secret" not in response.text


async def test_a_failure_in_mid_answer_is_a_status(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.fail_after = 3
    assert (await client.post(URL, json=ask())).status_code == 500


async def test_sec_17_the_server_chooses_every_id(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    responses = [await client.post(URL, json=ask(), headers={"X-Request-Id": "mine"}) for _ in range(2)]
    assert len(set(llm.request_ids)) == 2
    for response, request_id in zip(responses, llm.request_ids, strict=True):
        assert response.json()["id"] == request_id == f"chatcmpl-{response.headers['x-request-id']}"
        assert "mine" not in request_id
