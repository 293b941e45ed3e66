from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.core.outputs import OutputDelta

pytestmark = pytest.mark.anyio

URL = "/v1/completions"


def chunks(response: httpx.Response) -> list[dict]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def complete(client: httpx.AsyncClient, **fields: object) -> dict:
    response = await client.post(URL, json={"model": "toy/echo", "max_tokens": 100} | fields)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("prompt", ["你好", ["你好"], list("你好".encode()), [list("你好".encode())]])
async def test_a_prompt_is_text_or_tokens_or_a_list_of_either(client: httpx.AsyncClient, prompt: object) -> None:
    body = await complete(client, prompt=prompt)
    assert [choice["text"] for choice in body["choices"]] == ["echo: 你好"]
    assert body["usage"]["prompt_tokens"] == 6


async def test_sixteen_tokens_is_the_default(client: httpx.AsyncClient) -> None:
    body = (await client.post(URL, json={"prompt": "x" * 50})).json()
    assert body["choices"][0]["text"] == "echo: " + "x" * 10
    assert body["choices"][0]["finish_reason"] == "length"


async def test_answers_are_ordered_by_prompt_and_then_by_number(client: httpx.AsyncClient) -> None:
    body = await complete(client, prompt=["one", "two"], n=2, seed=3)
    choices = body["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"].split(": ")[1] for choice in choices] == ["one", "one", "two", "two"]
    streamed = chunks(await client.post(URL, json={"prompt": ["one", "two"], "n": 2, "seed": 3, "stream": True}))
    for choice in choices:
        own = [chunk["choices"][0] for chunk in streamed if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["é好", list("é好".encode())])
async def test_echo_gives_the_prompt_and_its_logprobs(client: httpx.AsyncClient, prompt: object, stream: bool) -> None:
    request = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 100}
    if stream:
        parts = [chunk["choices"][0] for chunk in chunks(await client.post(URL, json=request | {"stream": True}))]
        text = "".join(part["text"] for part in parts)
        logprobs: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for part in parts:
            for name, values in logprobs.items():
                values += (part["logprobs"] or {}).get(name, [])
    else:
        choice = (await complete(client, **request))["choices"][0]
        text, logprobs = choice["text"], choice["logprobs"]
    assert text == "é好echo: é好"
    assert {len(values) for values in logprobs.values()} == {len(text.encode()) + 1}
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    # The five bytes of the prompt, then "e": each token starts where the characters before it end.
    assert logprobs["text_offset"][:7] == [0, 0, 1, 1, 1, 2, 3]
    assert logprobs["tokens"][5] == "e"
    assert logprobs["top_logprobs"][5] == {"e": -0.5, "f": -1.5}


@pytest.mark.parametrize("prompt", [["é好", "b"], [list("é好".encode()), list(b"b")]])
async def test_each_streamed_answer_has_the_logprobs_of_the_whole_one(client: httpx.AsyncClient, prompt: list) -> None:
    request = {"prompt": prompt, "n": 3, "seed": 3, "echo": True, "logprobs": 2, "max_tokens": 100}
    whole = (await complete(client, **request))["choices"]
    streamed = chunks(await client.post(URL, json=request | {"stream": True}))
    assert len(whole) == 6
    for choice in whole:
        parts = [part for chunk in streamed for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values, name


async def test_offsets_start_behind_the_echo_whichever_answer_comes_first(
    client: httpx.AsyncClient, llm: ToyLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = llm.generate

    async def last_answer_first(*prompt: Any, **options: Any) -> AsyncGenerator[OutputDelta]:
        for delta in sorted([delta async for delta in generate(*prompt, **options)], key=lambda delta: -delta.index):
            yield delta

    monkeypatch.setattr(llm, "generate", last_answer_first)
    request = {"prompt": "é好", "n": 2, "echo": True, "logprobs": 2, "stream": True}
    first = chunks(await client.post(URL, json=request))[0]["choices"][0]
    assert (first["index"], first["text"]) == (1, "é好e")
    assert first["logprobs"]["text_offset"] == [0, 0, 1, 1, 1, 2]
    assert first["logprobs"]["token_logprobs"] == [None] * 5 + [-0.5]


async def test_logprobs_without_echo_start_at_the_answer(client: httpx.AsyncClient) -> None:
    logprobs = (await complete(client, prompt="a", logprobs=0))["choices"][0]["logprobs"]
    assert logprobs["tokens"][:2] == ["e", "c"]
    assert logprobs["text_offset"][:2] == [0, 1]
    assert logprobs["top_logprobs"][0] == {}


async def test_a_stop_string_ends_the_text(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, prompt="abc", stop=["b"]))["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("echo: a", "stop")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": ""}, "prompt", ["empty"]),
        ({"prompt": []}, "prompt", ["1 item"]),
        ({"prompt": [[]]}, "prompt[0]", ["1 item"]),
        ({"prompt": [300]}, "prompt", ["300", "256"]),
        ({"prompt": [-1]}, "prompt[0]", ["-1", "0"]),
        ({"prompt": [True]}, "prompt[0]", ["True"]),
        ({"prompt": {}}, "prompt", ["{}"]),
        ({"prompt": "x" * 512}, "prompt", ["512"]),
        ({"prompt": ["x"] * 65}, "prompt", ["64"]),
        ({"prompt": ["x"] * 9, "n": 8}, "n", ["72", "64"]),
        ({"best_of": 2}, "best_of", ["2", "1"]),
        ({"logprobs": 21}, "logprobs", ["21", "20"]),
        ({"logprobs": True}, "logprobs", ["True"]),
        ({"max_tokens": 0}, "max_tokens", ["0", "1"]),
    ],
)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, fields: dict[str, object], param: str, words: list[str]
) -> None:
    response = await client.post(URL, json={"prompt": "x"} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    for word in words:
        assert word in error["message"]


async def test_a_missing_prompt_is_named(client: httpx.AsyncClient) -> None:
    error = (await client.post(URL, json={"model": "default"})).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[1]", "The body is [1]"),
        ("null", "The body is null"),
        ('{"prompt": "x", "stream_options": 1}', "`stream_options` is 1"),
        ('{"prompt": "x", "logit_bias": 1}', "`logit_bias` is 1"),
    ],
)
async def test_a_value_in_the_place_of_an_object_is_told_in_words_of_json(
    client: httpx.AsyncClient, body: str, words: str
) -> None:
    response = await client.post(URL, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"{words}; it must be a JSON object."


async def test_a_failure_in_one_prompt_closes_the_others(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.fail_after = 2
    llm.step_s = 0.001
    assert (await client.post(URL, json={"prompt": ["a", "b", "c"]})).status_code == 500
    assert llm.num_open == 0
