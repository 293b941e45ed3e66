"""Filling gaps: what editors send, word for word, and what they get."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.serving.wire.infill import IndentGuard

pytestmark = pytest.mark.anyio

LLAMA_VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "import os\n\n\ndef size(path):\n",
    "input_suffix": "\n\nprint(size('x'))\n",
    "input_extra": [{"filename": "a.py", "text": "A = 1\n", "time": [12, 345678]}],
    "prompt": "    return ",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.9,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
    "model": "",
}
"""The fields of llama.vim's request, with values of their types."""
PRIMING: dict[str, Any] = {
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": [{"filename": "a.py", "text": "A = 1\n"}],
    "prompt": "",
    "n_predict": 0,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
}
"""The fields of llama.vscode's request that only has the other files read."""


async def post(client: httpx.AsyncClient, body: dict[str, Any], path: str = "/infill") -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_llama_vims_request_gets_the_fields_that_it_names(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "os.stat(path).st_size"
    answer = await post(client, LLAMA_VIM)
    assert set(answer) == set(LLAMA_VIM["response_fields"])
    assert answer["content"] == "os.stat(path).st_size"
    assert answer["truncated"] is False
    assert bytes(llm.prompts[-1]).decode() == (
        "[file a.py]A = 1\n[prefix]import os\n\n\ndef size(path):\n    return [suffix]\n\nprint(size('x'))\n[middle]"
    )
    params = llm.seen[-1]
    assert (params.max_tokens, params.top_k, params.top_p, params.stop_token_ids) == (128, 40, 0.9, [0])


async def test_a_request_that_predicts_nothing_has_the_prompt_read(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    answer = await post(client, PRIMING)
    assert (answer["content"], answer["tokens_predicted"], answer["stop_type"]) == ("", 0, "limit")
    assert llm.seen[-1].max_tokens == 1
    assert answer["tokens_evaluated"] == len(llm.prompts[-1])


async def test_an_answer_ends_before_a_line_outside_its_block(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "1\n    + 2\n\n    return x\nprint(x)\n"
    assert (await post(client, {"prompt": "x = ", "n_indent": 4}))["content"] == "1\n    + 2\n\n    return x"
    assert (await post(client, {"prompt": "x = "}))["content"] == llm.says


async def test_a_stream_brings_the_same_text_in_pieces(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "1\n    + 2\n\n    return x\nprint(x)\n"
    for fields in ({}, {"n_indent": 4}):
        whole = await post(client, {"prompt": "x = ", **fields})
        response = await client.post("/infill", json={"prompt": "x = ", "stream": True, **fields})
        *parts, last = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
        assert "".join(part["content"] for part in parts) == whole["content"]
        assert not any(part["stop"] for part in parts)
        assert (last["stop"], last["content"], last["tokens_predicted"]) == (True, "", whole["tokens_predicted"])


async def test_the_time_for_an_answer_counts_from_its_first_line(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says, llm.step_s = "a\n" + "b" * 380, 0.002
    answer = await post(client, {"prompt": "a", "t_max_predict_ms": 30, "n_predict": 400})
    assert 1 < answer["tokens_predicted"] < 400
    assert "\n" in answer["content"]
    assert answer["stop_type"] == "limit"
    assert llm.num_open == 0


async def test_stops_end_an_answer(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "abc;def"
    answer = await post(client, {"prompt": "abc", "stop": [";"]})
    assert (answer["content"], answer["stop_type"], answer["stopping_word"]) == ("abc", "word", ";")


async def test_mistrals_wire_fills_the_same_gap(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "1 + 2"
    body = {"model": "default", "prompt": "x = ", "suffix": "\nprint(x)", "max_tokens": 50, "random_seed": 3}
    answer = await post(client, body, "/v1/fim/completions")
    assert answer["choices"][0]["message"]["content"] == "1 + 2"
    assert (answer["object"], answer["choices"][0]["finish_reason"]) == ("chat.completion", "stop")
    assert bytes(llm.prompts[-1]) == b"[prefix]x = [suffix]\nprint(x)[middle]"
    assert llm.seen[-1].seed == 3
    response = await client.post("/v1/fim/completions", json=body | {"stream": True})
    *chunks, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert "".join(choice["delta"]["content"] for choice in choices) == "1 + 2"
    assert len(choices) == len(chunks), "Mistral's clients look at the first choice of every event"
    assert (choices[-1]["finish_reason"], json.loads(chunks[-1])["usage"]) == ("stop", answer["usage"])
    assert done == "[DONE]"


async def test_mistrals_wire_takes_penalties(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    body = {"prompt": "x", "presence_penalty": 0.5, "frequency_penalty": -0.5}
    await post(client, body, "/v1/fim/completions")
    assert (llm.seen[-1].presence_penalty, llm.seen[-1].frequency_penalty) == (0.5, -0.5)


async def test_completions_with_a_suffix_fill_a_gap(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.says = "1 + 2"
    answer = await post(client, {"prompt": "x = ", "suffix": "\n"}, "/v1/completions")
    assert answer["choices"][0]["text"] == "1 + 2"
    assert bytes(llm.prompts[-1]) == b"[prefix]x = [suffix]\n[middle]"
    for wrong in ({"prompt": ["a", "b"]}, {"prompt": "a", "echo": True}):
        response = await client.post("/v1/completions", json={**wrong, "suffix": "s"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "suffix")


@pytest.mark.parametrize("path", ["/v1/fim/completions", "/v1/completions"])
async def test_what_does_not_fit_is_refused_where_it_could_not_be_told(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={"prompt": "x" * 400, "suffix": "y", "max_tokens": 200})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_model_that_fills_no_gaps_says_so(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    llm.fills_gaps = False
    response = await client.post("/infill", json={"prompt": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "infill_not_supported")


async def test_what_does_not_fit_is_cut_and_told(client: httpx.AsyncClient, llm: ToyLLM) -> None:
    answer = await post(client, {"prompt": "x" * 1000, "n_predict": 12})
    assert answer["truncated"] is True
    assert len(llm.prompts[-1]) == 500


@pytest.mark.parametrize(
    ("text", "expected", "is_over"),
    [
        ("a", "a", False),
        ("a\n", "a\n", False),
        ("a\n  ", "a\n  ", False),
        ("a\n  b", "a\n  b", False),
        ("a\n b", "a", True),
        ("a\n\n  b\n   c", "a\n\n  b\n   c", False),
        ("a\n\nb", "a\n", True),
        ("a\n\tb", "a", True),
        ("  \n  b\nc\n  d", "  \n  b", True),
        ("", "", False),
    ],
)
def test_a_guarded_block_is_the_same_however_it_comes(text: str, expected: str, is_over: bool) -> None:
    for cuts in itertools.product([False, True], repeat=max(len(text) - 1, 0)):
        guard, out, over = IndentGuard(2), "", False
        start = 0
        for end in [*(at for at, cut in enumerate(cuts, start=1) if cut), len(text)]:
            new, over = guard.push(text[start:end])
            out, start = out + new, end
            if over:
                break
        assert (out if over else out + guard.finish(), over) == (expected, is_over)
