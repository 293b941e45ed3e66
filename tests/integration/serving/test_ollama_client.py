"""Ollama's official client against a real server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import ollama
import pytest
from toy_llm import FULL, ToyLLM

USER: Any = [{"role": "user", "content": "用中文说你好"}]
ECHO = "echo: [user] 用中文说你好"


def get_weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    return f"18 °C in {city}"


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'


@pytest.fixture
def client(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=url, timeout=20) as client:
        yield client


def test_models_are_listed(client: ollama.Client) -> None:
    (model,) = client.list().models
    assert (model.model, model.size) == ("toy/echo:latest", 4)
    assert model.details is not None
    assert (model.details.format, model.details.quantization_level) == ("safetensors", "F32")


@pytest.mark.parametrize("name", ["default", "toy/echo", "toy/echo:latest"])
def test_a_model_is_described(client: ollama.Client, name: str) -> None:
    shown = client.show(name)
    assert shown.capabilities == ["completion", "tools", "insert"]
    assert shown.details is not None
    assert (shown.details.family, shown.details.families, shown.details.parent_model) == ("qwen3", ["qwen3"], "")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "qwen3"
    assert shown.modelinfo["general.basename"] == "toy/echo"
    assert shown.modelinfo["qwen3.context_length"] == 512
    assert shown.modelinfo["qwen3.attention.head_count_kv"] == 5
    assert "qwen3.expert_count" not in shown.modelinfo
    assert shown.template == "{{ messages }}"
    assert shown.modelfile is not None
    assert shown.modelfile.startswith("FROM toy/echo\nPARAMETER num_ctx 512")
    assert shown.parameters is not None
    parameters = dict(line.split() for line in shown.parameters.splitlines())
    assert parameters["num_ctx"] == "512"
    assert float(parameters["temperature"]) == 1.0
    assert shown.modified_at is not None
    assert shown.modified_at.timestamp() == 1_700_000_000


def test_an_adapter_is_described_as_its_models_child(client: ollama.Client, llm: ToyLLM) -> None:
    llm.adapters = ("pirate",)
    shown = client.show("pirate")
    assert shown.details is not None
    assert shown.details.parent_model == "toy/echo"
    assert [model.model for model in client.list().models] == ["toy/echo:latest", "pirate:latest"]
    assert [model.model for model in client.ps().models] == ["toy/echo:latest", "pirate:latest"]


def test_a_model_that_is_not_there_is_not_found(client: ollama.Client, url: str) -> None:
    with pytest.raises(ollama.ResponseError, match=r"^The model 'llama3' is not served here") as missing:
        client.show("llama3")
    assert missing.value.status_code == 404
    assert httpx.post(f"{url}/api/show", json={"name": "default"}).status_code == 200
    refused = httpx.post(f"{url}/api/show", json={})
    assert (refused.status_code, refused.json()) == (400, {"error": "`model` is missing."})


def test_what_is_in_memory_is_told(client: ollama.Client) -> None:
    (model,) = client.ps().models
    assert (model.model, model.size, model.size_vram, model.context_length) == ("toy/echo:latest", 4, 0, 512)
    assert model.expires_at is not None
    assert model.expires_at.year > 2200


def test_a_gap_is_filled(client: ollama.Client, llm: ToyLLM) -> None:
    assert client.generate("default", "a = ", suffix="\nb").response == "echo: b[middle]"
    assert bytes(llm.prompts[-1]) == b"[prefix]a = [suffix]\nb[middle]"
    assert (llm.seen[-1].output_format, llm.seen[-1].stop_token_ids) == ("text", [0])
    assert client.generate("default", suffix="b", options={"num_predict": 1}).done_reason == "length"
    for fields in ({"system": "x"}, {"raw": True}, {"format": "json"}):
        wrong: Any = fields
        with pytest.raises(ollama.ResponseError, match="`suffix`"):
            client.generate("default", "a", suffix="b", **wrong)


def test_the_version_is_one_that_editors_take(url: str) -> None:
    version = httpx.get(f"{url}/api/version").json()["version"]
    assert tuple(int(part) for part in version.split(".")) >= (0, 6, 4)


@pytest.mark.parametrize("name", ["default", "toy/echo", "toy/echo:latest"])
def test_a_chat_answers(client: ollama.Client, name: str) -> None:
    answer = client.chat(name, USER)
    assert answer.message.content == ECHO
    assert (answer.model, answer.done, answer.done_reason) == ("toy/echo", True, "stop")
    assert answer.eval_count == len(ECHO.encode()) + 1
    assert answer.prompt_eval_count == len("[user] 用中文说你好".encode())
    assert answer.total_duration is not None
    assert answer.prompt_eval_duration is not None
    assert answer.eval_duration is not None
    assert 0 < answer.prompt_eval_duration + answer.eval_duration <= answer.total_duration


def test_a_chat_streams(client: ollama.Client) -> None:
    *parts, last = client.chat("default", USER, stream=True)
    assert "".join(part.message.content or "" for part in parts) == ECHO
    assert not any(part.done for part in parts)
    assert (last.done, last.done_reason, last.message.content) == (True, "stop", "")


@pytest.mark.parametrize("streams", [False, True])
def test_tools_are_called_and_answered(client: ollama.Client, llm: ToyLLM, streams: bool) -> None:
    llm.says = f"Let me look.{CALL}"
    parts: Any = client.chat("default", USER, tools=[get_weather], stream=streams)
    parts = list(parts) if streams else [parts]
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("get_weather", {"city": "北京"})]
    assert "".join(part.message.content or "" for part in parts) == "Let me look."
    grammar = llm.seen[-1].grammar
    assert grammar is not None
    assert grammar.kind == "tools"

    llm.says = None
    turns: Any = [
        *USER,
        {"role": "assistant", "content": "Let me look.", "tool_calls": calls},
        {"role": "tool", "tool_name": "get_weather", "content": get_weather("北京")},
    ]
    client.chat("default", turns, tools=[get_weather])
    assert bytes(llm.prompts[-1]).decode().splitlines()[-1] == "[tool] 18 °C in 北京"


@pytest.mark.parametrize("streams", [False, True])
def test_thinking_comes_apart(client: ollama.Client, llm: ToyLLM, streams: bool) -> None:
    llm.says = "<think>\nHm.\n</think>\n\nYes."
    parts: Any = client.chat("default", USER, think=True, stream=streams)
    parts = list(parts) if streams else [parts]
    assert "".join(part.message.thinking or "" for part in parts).strip() == "Hm."
    assert "".join(part.message.content or "" for part in parts) == "Yes."
    assert bytes(llm.prompts[-1]).startswith(b"[thinking] True")
    assert llm.seen[-1].thinking_budget is None
    client.chat("default", USER, think="low")
    assert llm.seen[-1].thinking_budget == 1024
    answer = client.generate("default", "hi", think=False)
    assert answer.thinking is not None
    assert bytes(llm.prompts[-1]).startswith(b"[thinking] False")


def test_a_prompt_is_answered_or_gone_on_with(client: ollama.Client, llm: ToyLLM) -> None:
    assert client.generate("default", "你好", system="Be brief.").response == "echo: [user] 你好"
    assert bytes(llm.prompts[-1]).startswith(b"[system] Be brief.")
    assert client.generate("default", "abc", raw=True).response == "echo: abc"
    parts = list(client.generate("default", "abc", raw=True, stream=True))
    assert "".join(part.response or "" for part in parts) == "echo: abc"
    assert parts[-1].done


def test_without_a_prompt_the_model_is_loaded(client: ollama.Client) -> None:
    assert client.generate("default").done_reason == "load"
    assert client.chat("default").done_reason == "load"


def test_options_and_formats_go_through(client: ollama.Client, llm: ToyLLM) -> None:
    options = {"temperature": 0.5, "top_k": 7, "num_predict": 3, "repeat_penalty": 1.2, "num_ctx": 4096, "seed": 1}
    answer = client.chat("default", USER, options={**options, "stop": ["x"]}, keep_alive="5m")
    params = llm.seen[-1]
    assert (params.temperature, params.top_k, params.max_tokens, params.repetition_penalty) == (0.5, 7, 3, 1.2)
    assert (params.seed, list(params.stop), answer.done_reason) == (1, ["x"], "length")
    client.chat("default", USER, options={"num_predict": -1, "seed": -1})
    assert llm.seen[-1].seed is None
    assert llm.seen[-1].max_tokens is None
    for wanted, kind in (("json", "json_object"), ({"type": "object"}, "json_schema")):
        shape: Any = wanted
        client.generate("default", "hi", format=shape)
        grammar = llm.seen[-1].grammar
        assert grammar is not None
        assert grammar.kind == kind


def test_errors_have_ollamas_body(client: ollama.Client, llm: ToyLLM) -> None:
    with pytest.raises(ollama.ResponseError, match=r"^The model 'llama3' is not served here") as missing:
        client.chat("llama3", USER)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"temperature") as wrong:
        client.chat("default", USER, options={"temperature": 9})
    assert wrong.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match=r"options.num_predict"):
        client.chat("default", USER, options={"num_predict": 0})
    llm.error = FULL
    with pytest.raises(ollama.ResponseError) as full:
        client.chat("default", USER)
    assert full.value.status_code == 503
    llm.error, llm.fail_after = None, 3
    with pytest.raises(ollama.ResponseError, match="model failed"):
        list(client.chat("default", USER, stream=True))


def test_a_name_may_end_like_a_tag(serve: Callable[..., contextlib.AbstractContextManager[str]]) -> None:
    with serve(served_model_name="qwen:latest") as url, ollama.Client(host=url) as client:
        (model,) = client.list().models
        assert model.model is not None
        assert client.chat(model.model, USER).message.content == ECHO


def test_a_key_is_needed_where_there_is_one(serve: Callable[..., contextlib.AbstractContextManager[str]]) -> None:
    with serve(api_keys=("sk-right-key",)) as url:
        with ollama.Client(host=url) as stranger, pytest.raises(ollama.ResponseError) as refused:
            stranger.list()
        assert refused.value.status_code == 401
        with ollama.Client(host=url, headers={"Authorization": "Bearer sk-right-key"}) as owner:
            assert [model.model for model in owner.list().models] == ["toy/echo:latest"]
