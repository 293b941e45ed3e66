"""Texts to tokens and back over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio
USER: Any = [{"role": "user", "content": "你"}]


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("name", ["prompt", "content"])
async def test_a_text_becomes_tokens_and_they_a_text(client: httpx.AsyncClient, name: str) -> None:
    text = "x 你"
    answer = await post(client, "/tokenize", {name: text})
    assert answer == {"tokens": list(text.encode()), "count": 5, "max_model_len": 512}
    assert (await post(client, "/detokenize", {"tokens": answer["tokens"]}))["content"] == text
    assert (await post(client, "/tokenize", {name: "a" * 2000}))["count"] == 2000
    assert (await post(client, "/tokenize", {"messages": [{"role": "user", "content": "a" * 2000}]}))["count"] > 2000


async def test_pieces_that_are_no_text_are_bytes(client: httpx.AsyncClient) -> None:
    pieces = (await post(client, "/tokenize", {"content": "a你", "with_pieces": True}))["tokens"]
    assert pieces[0] == {"id": 97, "piece": "a"}
    assert pieces[1] == {"id": 228, "piece": [228]}


async def test_a_conversation_becomes_what_the_model_reads(client: httpx.AsyncClient) -> None:
    written = "[thinking] False\n[user] 你"
    body = {"messages": USER, "chat_template_kwargs": {"enable_thinking": False}}
    assert (await post(client, "/apply-template", body))["prompt"] == written
    assert bytes((await post(client, "/tokenize", body))["tokens"]).decode() == written


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "a"}, "prompt"),
        ("/detokenize", {"tokens": [999]}, "tokens"),
        ("/detokenize", {"tokens": [97] * 513}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/apply-template", {"messages": []}, "messages"),
    ],
)
async def test_wrong_requests_name_the_field(client: httpx.AsyncClient, path: str, body: Any, param: str) -> None:
    response = await client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template"])
async def test_only_what_is_served_answers(client: httpx.AsyncClient, path: str) -> None:
    body = {"model": "gpt-5", "prompt": "a"} if path == "/tokenize" else {"model": "gpt-5", "tokens": [1]}
    body = {"model": "gpt-5", "messages": USER} if path == "/apply-template" else body
    assert (await client.post(path, json=body)).status_code == 404
