"""Numbers that no model can use are refused at the door, whatever the wire; the engine never hears of them."""

from __future__ import annotations

import json

import httpx
import pytest
from toy_llm import ToyLLM

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
WIRES = {
    "/v1/chat/completions": (CHAT, "max_tokens"),
    "/v1/completions": ({"prompt": "hello"}, "max_tokens"),
    "/v1/messages": ({"model": "default", **CHAT}, "max_tokens"),
    "/v1/responses": ({"input": "hello", "store": False}, "max_output_tokens"),
    "/infill": ({"input_prefix": "a", "input_suffix": "b"}, "n_predict"),
    "/qwen3/generate": ({"prompt": "hello"}, "max_length"),
}
ODD = ["-9223372036854775809", "0", "1e400", "NaN", "-Infinity", "1.5", "1" + "0" * 400, '"5"', "true", "[]"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", WIRES)
@pytest.mark.parametrize("odd", ODD)
async def test_sec_08_odd_counts_of_tokens_are_refused(
    client: httpx.AsyncClient, llm: ToyLLM, path: str, odd: str
) -> None:
    body, field = WIRES[path]
    if (path, odd) == ("/infill", "0"):
        return  # llama.cpp's way to have a prompt read and kept
    content = json.dumps(body)[:-1] + f', "{field}": {odd}}}'
    answer = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert not llm.prompts


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "odd"),
    [
        ("temperature", "-0.1"),
        ("temperature", "1e999"),
        ("top_p", "0"),
        ("top_k", "-2"),
        ("n", "-1"),
        ("seed", "9223372036854775808"),
        ("logit_bias", '{"-1": 1}'),
        ("logit_bias", '{"5": 1e9}'),
        ("stop_token_ids", "[-1]"),
        ("stop_token_ids", "[4294967296]"),
        ("min_p", "NaN"),
        ("priority", "99999999999999999999"),
    ],
)
async def test_sec_08_odd_sampling_is_refused(client: httpx.AsyncClient, llm: ToyLLM, field: str, odd: str) -> None:
    content = json.dumps(CHAT)[:-1] + f', "{field}": {odd}}}'
    answer = await client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert not llm.prompts


@pytest.mark.anyio
@pytest.mark.parametrize("token", [-1, 257, 2**31, 2**63])
async def test_sec_08_a_token_that_there_is_not_is_refused(client: httpx.AsyncClient, llm: ToyLLM, token: int) -> None:
    answer = await client.post("/v1/completions", json={"prompt": [1, token]})
    assert answer.status_code == 400, answer.text
    assert not llm.prompts


@pytest.mark.anyio
@pytest.mark.parametrize("odd", [0, 0.0, 1, "false", []])
async def test_a_number_is_no_switch(client: httpx.AsyncClient, odd: object) -> None:
    for path, body in (
        ("/v1/chat/completions", {**CHAT, "store": odd}),
        ("/v1/responses", {"input": "x", "store": False, "stream_options": {"include_obfuscation": odd}}),
        ("/api/chat", {"model": "default", **CHAT, "stream": False, "options": {"penalize_newline": odd}}),
        ("/api/chat", {"model": "default", **CHAT, "stream": False, "options": {"mirostat": False}}),
    ):
        assert (await client.post(path, json=body)).status_code == 400, path
