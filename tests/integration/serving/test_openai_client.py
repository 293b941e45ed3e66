"""The official client against a real server: what works with OpenAI works here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from toy_llm import FULL, ToyLLM

USER: Any = [{"role": "user", "content": "用中文说你好"}]
ECHO = "echo: [user] 用中文说你好"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=20) as client:
        yield client


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy/echo"]
    assert client.models.retrieve("toy/echo").id == "toy/echo"
    assert client.models.retrieve("default").id == "toy/echo"


def test_a_chat_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="default", messages=USER)
    assert answer.choices[0].message.content == ECHO
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


class Place(BaseModel):
    city: str


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # its own, of the answer that it parsed
def test_a_parsed_answer_can_be_sent_back(client: openai.OpenAI, llm: ToyLLM) -> None:
    llm.says = '{"city": "北京"}'
    answer = client.chat.completions.parse(model="default", messages=USER, response_format=Place).choices[0].message
    assert answer.parsed == Place(city="北京")
    turns: Any = [*USER, answer, *USER]
    assert client.chat.completions.create(model="default", messages=turns).choices[0].finish_reason == "stop"


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="default", messages=USER)
    again = [*USER, first.choices[0].message.model_dump(), {"role": "user", "content": "more"}]
    assert (
        client.chat.completions.create(model="default", messages=again).choices[0].message.content
        == "echo: [user] more"
    )


def test_a_chat_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="toy/echo", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ECHO
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ECHO.encode()) + 1


def test_the_stream_helper_gathers_an_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="default", messages=USER, logprobs=True, top_logprobs=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ECHO
    assert final.choices[0].logprobs is not None
    assert final.choices[0].logprobs.content is not None
    assert bytes(byte for entry in final.choices[0].logprobs.content for byte in entry.bytes or ()).decode() == ECHO


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="default", messages=USER, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [top.token for top in logprobs.content[0].top_logprobs] == ["e", "f"]
    text = client.completions.create(model="default", prompt="hi", logprobs=2).choices[0]
    assert text.logprobs is not None
    assert text.logprobs.tokens is not None
    assert "".join(text.logprobs.tokens) == text.text == "echo: hi"


def test_completions_whole_streamed_and_echoed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="default", prompt=["a", "b"], max_tokens=50)
    assert [choice.text for choice in whole.choices] == ["echo: a", "echo: b"]
    stream = client.completions.create(model="default", prompt="流", stream=True, max_tokens=50)
    assert "".join(chunk.choices[0].text for chunk in stream) == "echo: 流"
    assert client.completions.create(model="default", prompt="a", echo=True).choices[0].text == "aecho: a"


def test_stop_n_and_seed(client: openai.OpenAI) -> None:
    stopped = client.completions.create(model="default", prompt="abc", stop="b").choices[0]
    assert (stopped.text, stopped.finish_reason) == ("echo: a", "stop")
    several = [client.completions.create(model="default", prompt="x", n=3, seed=seed) for seed in (1, 1, 2)]
    texts = [[choice.text for choice in answer.choices] for answer in several]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3


def test_extra_parameters_go_through(client: openai.OpenAI, llm: ToyLLM) -> None:
    client.chat.completions.create(
        model="default",
        messages=USER,
        max_completion_tokens=9,
        extra_body={"top_k": 5, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert (llm.seen[-1].top_k, llm.seen[-1].min_p, llm.seen[-1].max_tokens) == (5, 0.1, 9)
    assert bytes(llm.prompts[-1]).startswith(b"[thinking] False")


def test_errors_are_the_clients_own_types(client: openai.OpenAI, llm: ToyLLM) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="default", messages=USER, n=1_000_000)
    assert wrong.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="default", messages=[{"role": "user", "content": "长" * 1000}])
    assert long.value.code == "context_length_exceeded"
    llm.error = FULL
    with pytest.raises(openai.InternalServerError) as full:
        client.chat.completions.create(model="default", messages=USER, stream=True)
    assert full.value.status_code == 503
    llm.error, llm.fail_after = None, 3
    with pytest.raises(openai.APIError, match="model failed"):
        list(client.chat.completions.create(model="default", messages=USER, stream=True))


def test_a_wrong_key_is_an_authentication_error(serve: Callable[..., contextlib.AbstractContextManager[str]]) -> None:
    with serve(api_keys=("sk-right-key",)) as url:
        stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-right-key", max_retries=0) as owner:
            assert [model.id for model in owner.models.list()] == ["toy/echo"]


def test_a_stream_that_is_closed_is_cancelled(client: openai.OpenAI, llm: ToyLLM) -> None:
    llm.endless, llm.step_s = True, 0.002
    stream = client.chat.completions.create(model="default", messages=USER, stream=True)
    for number, _ in enumerate(stream):
        if number == 5:
            break
    stream.close()
    deadline = time.monotonic() + 2
    while llm.num_open and time.monotonic() < deadline:
        time.sleep(0.005)
    assert llm.num_open == 0


def test_a_whole_answer_that_times_out_is_cancelled(url: str, llm: ToyLLM) -> None:
    llm.endless, llm.step_s = True, 0.002
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=0.3)
    with client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="default", messages=USER)
    deadline = time.monotonic() + 2
    while llm.num_open and time.monotonic() < deadline:
        time.sleep(0.005)
    assert llm.num_open == 0
