"""grpcio's own client against a real server: the same answers as over HTTP, cancelled, refused and watched."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_embedder import ToyEmbedder
from toy_llm import FULL, ToyLLM

from qwenstack.core.errors import EngineError, EngineRestartingError, RequestError
from qwenstack.core.limits import Limits
from qwenstack.serving import ServeConfig
from qwenstack.serving.grpc.v1 import generation_pb2 as pb
from qwenstack.serving.grpc.v1.embeddings_pb2 import INPUT_TYPE_PASSAGE, EmbedRequest
from qwenstack.serving.grpc.v1.embeddings_pb2_grpc import EmbeddingServiceStub
from qwenstack.serving.grpc.v1.generation_pb2_grpc import GenerationServiceStub
from qwenstack.serving.grpc.v1.messages_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    FunctionCall,
    FunctionDefinition,
    Message,
    Tool,
    ToolCall,
)
from qwenstack.serving.grpc.v1.models_pb2 import ListModelsRequest
from qwenstack.serving.grpc.v1.models_pb2_grpc import ModelServiceStub
from qwenstack.serving.grpc.v1.tokens_pb2 import DetokenizeRequest, TokenizeRequest
from qwenstack.serving.grpc.v1.tokens_pb2_grpc import TokenServiceStub

Serve = Callable[..., contextlib.AbstractContextManager[tuple[str, str]]]
GENERATION = "qwenstack.v1.GenerationService"
HELLO = [Message(role=ROLE_USER, content="hello")]
WEATHER = Tool(function=FunctionDefinition(name="weather", parameters='{"type": "object", "properties": {}}'))


@pytest.fixture
def addresses(serve_both: Serve) -> Iterator[tuple[str, str]]:
    with serve_both() as both:
        yield both


@pytest.fixture
def channel(addresses: tuple[str, str]) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(addresses[1]) as channel:
        yield channel


@pytest.fixture
def generation(channel: grpc.Channel) -> GenerationServiceStub:
    return GenerationServiceStub(channel)


def wait_for(is_so: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def joined(pieces: list[pb.StreamGenerateResponse]) -> pb.GenerateResponse:
    """Put the pieces of a stream together, as a client would."""
    whole = pb.GenerateResponse(id=pieces[0].id, model=pieces[0].model, usage=pieces[-1].usage)
    for piece in pieces:
        for delta in piece.choices:
            while delta.index >= len(whole.choices):
                whole.choices.add(index=len(whole.choices), message=Message(role=ROLE_ASSISTANT))
            add(delta, whole.choices[delta.index])
    return whole


def add(delta: pb.ChoiceDelta, choice: pb.Choice) -> None:
    if delta.content:
        choice.message.content += delta.content
    if delta.reasoning_content:
        choice.message.reasoning_content += delta.reasoning_content
    for call in delta.tool_calls:
        if call.index == len(choice.message.tool_calls):
            choice.message.tool_calls.add(id=call.id, function=FunctionCall(name=call.name))
        choice.message.tool_calls[call.index].function.arguments += call.arguments
    choice.logprobs.extend(delta.logprobs)
    if delta.finish_reason:
        choice.finish_reason = delta.finish_reason
        if delta.HasField("stop_reason"):
            choice.stop_reason.CopyFrom(delta.stop_reason)


def without_ids(response: pb.GenerateResponse) -> pb.GenerateResponse:
    copy = pb.GenerateResponse()
    copy.CopyFrom(response)
    copy.id, copy.created = "", 0
    for choice in copy.choices:
        for call in choice.message.tool_calls:
            assert call.id.startswith("call_")
            call.id = ""
    return copy


CASES = {
    "plain": pb.GenerateRequest(messages=HELLO),
    "two answers with log-probabilities": pb.GenerateRequest(messages=HELLO, n=2, seed=7, temperature=1, logprobs=2),
    "cut": pb.GenerateRequest(messages=HELLO, max_tokens=4),
    "stopped": pb.GenerateRequest(messages=HELLO, stop=["l"]),
    "text": pb.GenerateRequest(prompt="你好", max_tokens=50),
    "tools": pb.GenerateRequest(messages=HELLO, tools=[WEATHER]),
}
SAYS = '<think>hm</think>Look: <tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'


@pytest.mark.parametrize("name", CASES)
def test_the_pieces_of_a_stream_are_the_whole_answer(llm: ToyLLM, generation: GenerationServiceStub, name: str) -> None:
    llm.says = SAYS if name == "tools" else None
    whole = generation.Generate(CASES[name])
    assert whole.choices[0].message.content or whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason != pb.FINISH_REASON_UNSPECIFIED
    assert without_ids(joined(list(generation.StreamGenerate(CASES[name])))) == without_ids(whole)


def test_an_answer_is_the_one_that_http_gives(
    llm: ToyLLM, addresses: tuple[str, str], generation: GenerationServiceStub
) -> None:
    llm.says = SAYS
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    body = {"messages": [{"role": "user", "content": "hello"}], "tools": [tool], "logprobs": True, "top_logprobs": 1}
    http = httpx.post(f"{addresses[0]}/v1/chat/completions", json=body).json()
    ours = generation.Generate(pb.GenerateRequest(messages=HELLO, tools=[WEATHER], logprobs=1))
    theirs = http["choices"][0]
    (choice,) = ours.choices
    assert choice.message.content == theirs["message"]["content"]
    assert choice.message.reasoning_content == theirs["message"]["reasoning_content"]
    function = choice.message.tool_calls[0].function
    assert {"name": function.name, "arguments": function.arguments} == theirs["message"]["tool_calls"][0]["function"]
    assert theirs["finish_reason"] == "tool_calls"
    assert choice.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert [list(entry.token) for entry in choice.logprobs] == [e["bytes"] for e in theirs["logprobs"]["content"]]
    assert ours.model == http["model"]
    assert (ours.usage.prompt_tokens, ours.usage.completion_tokens) == (
        http["usage"]["prompt_tokens"],
        http["usage"]["completion_tokens"],
    )
    assert ours.usage.reasoning_tokens == http["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


OPTIONAL = {
    "max_tokens": st.integers(1, 40),
    "min_tokens": st.integers(0, 3),
    "n": st.integers(1, 3),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(0, 100),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 10),
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "priority": st.integers(-10, 10),
    "cache_prompt": st.booleans(),
    "parallel_tool_calls": st.booleans(),
    "enable_thinking": st.booleans(),
    "thinking_budget": st.integers(0, 50),
    "stop": st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), min_size=1, max_size=3),
    "stop_token_ids": st.lists(st.integers(0, 255), min_size=1, max_size=3),
    "model": st.sampled_from(["toy/echo", "default"]),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


class Both:
    """One toy model behind both wires; not a dataclass, whose text would hold all that the toy has seen."""

    def __init__(self, llm: ToyLLM, http: httpx.Client, generation: GenerationServiceStub) -> None:
        self.llm = llm
        self.http = http
        self.generation = generation


@pytest.fixture(scope="module")
def both(serve_at: Callable[..., Any]) -> Iterator[Both]:
    llm = ToyLLM()
    with (
        serve_at(llm, ServeConfig(grpc_port=0)) as (url, grpc_url),
        httpx.Client(base_url=url) as http,
        grpc.insecure_channel(grpc_url.removeprefix("grpc://")) as channel,
    ):
        yield Both(llm, http, GenerationServiceStub(channel))


@given(
    fields=st.fixed_dictionaries({}, optional=OPTIONAL),
    logprobs=st.none() | st.integers(0, 3),
    bias=st.dictionaries(st.integers(0, 256), st.floats(-100, 100), max_size=2),
    contents=st.lists(TEXT, min_size=1, max_size=3),
    has_tools=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_request_reaches_the_engine_as_the_same_one_over_http(
    both: Both,
    fields: dict[str, Any],
    logprobs: int | None,
    bias: dict[int, float],
    contents: list[str],
    has_tools: bool,
) -> None:
    llm, http, generation = both.llm, both.http, both.generation
    body = fields | {"messages": [{"role": "user", "content": text} for text in contents]}
    request = pb.GenerateRequest(
        **fields, messages=[Message(role=ROLE_USER, content=text) for text in contents], logit_bias=bias
    )
    if bias:
        body["logit_bias"] = {str(token_id): value for token_id, value in bias.items()}
    if logprobs is not None:
        request.logprobs = logprobs
        body |= {"logprobs": True, "top_logprobs": logprobs}
    if has_tools:
        request.tools.append(WEATHER)
        function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
        body["tools"] = [{"type": "function", "function": function}]
    before = len(llm.seen)
    answer = http.post("/v1/chat/completions", json=body)
    call = generation.Generate.future(request)
    if call.exception() is not None:
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, call.details())
        return
    assert answer.status_code == 200, answer.text
    for seen in (llm.seen, llm.options, llm.prompts):
        assert seen[before] == seen[before + 1]


def test_a_conversation_with_calls_and_results_is_read_as_over_http(
    both: Both,
) -> None:
    llm, http, generation = both.llm, both.http, both.generation
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}
    body = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "a"},
    ]
    messages = [
        Message(role=ROLE_SYSTEM, content="Be brief."),
        *HELLO,
        Message(
            role=ROLE_ASSISTANT,
            reasoning_content="hm",
            tool_calls=[ToolCall(id="a", function=FunctionCall(name="weather", arguments='{"city": "x"}'))],
        ),
        Message(role=ROLE_TOOL, content="rain", tool_call_id="a"),
    ]
    assert http.post("/v1/chat/completions", json={"messages": body}).status_code == 200
    generation.Generate(pb.GenerateRequest(messages=messages))
    assert llm.prompts[-1] == llm.prompts[-2]


FORMATS = {
    "text": (pb.ResponseFormat(type=pb.ResponseFormat.TYPE_TEXT), {"type": "text"}),
    "object": (pb.ResponseFormat(type=pb.ResponseFormat.TYPE_JSON_OBJECT), {"type": "json_object"}),
    "schema": (
        pb.ResponseFormat(type=pb.ResponseFormat.TYPE_JSON_SCHEMA, json_schema='{"type": "integer"}'),
        {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
    ),
}
CHOICES = {
    "none": (pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE), "none"),
    "auto": (pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO), "auto"),
    "required": (pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED), "required"),
    "one": (pb.ToolChoice(function="weather"), {"type": "function", "function": {"name": "weather"}}),
}


@pytest.mark.parametrize("name", [*FORMATS, *CHOICES])
def test_what_an_answer_has_to_look_like_is_said_as_over_http(both: Both, name: str) -> None:
    llm, http, generation = both.llm, both.http, both.generation
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
    request = pb.GenerateRequest(messages=HELLO)
    if name in FORMATS:
        text_format, body["response_format"] = FORMATS[name]
        request.response_format.CopyFrom(text_format)
    else:
        choice, body["tool_choice"] = CHOICES[name]
        body["tools"] = [
            {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
        ]
        request.tool_choice.CopyFrom(choice)
        request.tools.append(WEATHER)
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    generation.Generate(request)
    assert llm.seen[-1] == llm.seen[-2]


def test_models_and_tokens_are_those_of_http(llm: ToyLLM, addresses: tuple[str, str], channel: grpc.Channel) -> None:
    llm.adapters = ("poet",)
    models = ModelServiceStub(channel).ListModels(ListModelsRequest()).models
    listed = httpx.get(f"{addresses[0]}/v1/models").json()["data"]
    assert [(model.id, model.max_model_len, model.parent) for model in models] == [
        (model["id"], model["max_model_len"], model.get("parent", "")) for model in listed
    ]
    tokens = TokenServiceStub(channel)
    assert list(tokens.Tokenize(TokenizeRequest(prompt="你好")).tokens) == list("你好".encode())
    assert bytes(tokens.Tokenize(TokenizeRequest(messages=HELLO, tools=[WEATHER])).tokens) == b"[tools] 1\n[user] hello"
    assert tokens.Detokenize(DetokenizeRequest(tokens="你好".encode())).content == "你好"
    generation = GenerationServiceStub(channel)
    assert generation.Generate(pb.GenerateRequest(model="poet", messages=HELLO)).model == "poet"
    assert llm.options[-1].adapter == "poet"


@pytest.fixture
def embedding(serve_both: Serve) -> Iterator[tuple[ToyEmbedder, str, grpc.Channel]]:
    embedder = ToyEmbedder()
    with serve_both(embedder=embedder) as (url, address), grpc.insecure_channel(address) as channel:
        yield embedder, url, channel


def test_vectors_are_those_of_http(embedding: tuple[ToyEmbedder, str, grpc.Channel]) -> None:
    embedder, url, channel = embedding
    body = {"input": ["abc", "你好"], "input_type": "passage", "dimensions": 5}
    http = httpx.post(f"{url}/v1/embeddings", json=body).json()
    request = EmbedRequest(input=["abc", "你好"], input_type=INPUT_TYPE_PASSAGE, dimensions=5)
    ours = EmbeddingServiceStub(channel).Embed(request)
    assert [list(each.values) for each in ours.embeddings] == [each["embedding"] for each in http["data"]]
    assert (ours.model, ours.prompt_tokens) == (http["model"], http["usage"]["prompt_tokens"])
    assert embedder.seen[:2] == embedder.seen[2:]
    listed = [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]
    models = ModelServiceStub(channel).ListModels(ListModelsRequest()).models
    assert [model.id for model in models] == listed
    assert models[-1].dimensions == 8


WRONG_INPUT = {
    "nothing": (EmbedRequest(), "input"),
    "too many": (EmbedRequest(input=["a"] * 100_000), "input"),
    "too long": (EmbedRequest(input=["a" * 17]), "input"),
    "a type": (EmbedRequest(input=["a"], input_type=7), "input_type"),
    "dimensions": (EmbedRequest(input=["a"], dimensions=3), "dimensions"),
    "no dimensions": (EmbedRequest(input=["a"], dimensions=0), "dimensions"),
}


@pytest.mark.parametrize("name", WRONG_INPUT)
def test_wrong_texts_to_embed_name_the_field(embedding: tuple[ToyEmbedder, str, grpc.Channel], name: str) -> None:
    embedder, _, channel = embedding
    request, param = WRONG_INPUT[name]
    with pytest.raises(grpc.RpcError) as caught:
        EmbeddingServiceStub(channel).Embed(request)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert dict(error.trailing_metadata())["error-param"] == param
    assert len(error.details()) < 500
    assert embedder.seen == []


def test_health_of_embeddings_is_their_own(embedding: tuple[ToyEmbedder, str, grpc.Channel], llm: ToyLLM) -> None:
    health = health_pb2_grpc.HealthStub(embedding[2])
    llm.is_ready = False
    request = health_pb2.HealthCheckRequest(service="qwenstack.v1.EmbeddingService")
    assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    statuses = health.List(health_pb2.HealthListRequest()).statuses
    assert {name for name, each in statuses.items() if each.status == health_pb2.HealthCheckResponse.SERVING} == {
        "qwenstack.v1.EmbeddingService"
    }


def test_without_an_embedding_model_the_reason_is_told(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        EmbeddingServiceStub(channel).Embed(EmbedRequest(input=["a"]))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    assert "--embedding-model" in caught.value.details()  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["cancel", "deadline", "channel"])
@pytest.mark.parametrize("is_streamed", [True, False])
def test_sec_22_the_engine_stops_when_the_client_leaves(
    llm: ToyLLM, addresses: tuple[str, str], way: str, is_streamed: bool
) -> None:
    llm.endless, llm.step_s = True, 0.002
    request = pb.GenerateRequest(messages=HELLO, max_tokens=480)
    with grpc.insecure_channel(addresses[1]) as channel:
        stub = GenerationServiceStub(channel)
        timeout_s = 0.3 if way == "deadline" else None
        call = (stub.StreamGenerate if is_streamed else stub.Generate.future)(request, timeout=timeout_s)
        wait_for(lambda: llm.num_steps > 3)
        if way == "cancel":
            call.cancel()
        if way != "channel":
            wait_for(lambda: llm.num_open == 0)
    wait_for(lambda: llm.num_open == 0)
    assert llm.num_steps < 400
    if way == "deadline":
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED


ERRORS: dict[str, tuple[Exception, grpc.StatusCode, str]] = {
    "wrong": (RequestError("`x` is 3.", param="x", code="c"), grpc.StatusCode.INVALID_ARGUMENT, "`x` is 3."),
    "full": (FULL, grpc.StatusCode.UNAVAILABLE, str(FULL)),
    "quarantined": (RequestError("No.", code="quarantined"), grpc.StatusCode.FAILED_PRECONDITION, "No."),
    "restarting": (EngineRestartingError("It restarts."), grpc.StatusCode.UNAVAILABLE, "It restarts."),
    "engine": (EngineError("secret /dev/mem"), grpc.StatusCode.INTERNAL, "the log has the cause under request"),
    "bug": (KeyError("secret"), grpc.StatusCode.INTERNAL, "log has the cause under request"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_each_error_has_its_code_and_tells_no_secret(
    llm: ToyLLM, generation: GenerationServiceStub, name: str, is_streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    llm.error, code, text = ERRORS[name]
    request = pb.GenerateRequest(messages=HELLO)
    with pytest.raises(grpc.RpcError) as caught:
        list(generation.StreamGenerate(request)) if is_streamed else generation.Generate(request)
    error: Any = caught.value
    metadata = dict(error.trailing_metadata())
    assert error.code() == code
    assert text in error.details()
    assert "secret" not in f"{error.details()}{metadata}{caplog.text}"
    assert len(metadata["x-request-id"]) == 32
    assert (metadata["x-request-id"] in error.details()) == (code == grpc.StatusCode.INTERNAL)
    assert metadata.get("retry-after") == ("1" if code == grpc.StatusCode.UNAVAILABLE else None)


WRONG: dict[str, tuple[pb.GenerateRequest, str]] = {
    "nothing": (pb.GenerateRequest(), "messages"),
    "both": (pb.GenerateRequest(messages=HELLO, prompt="x"), "messages"),
    "role": (pb.GenerateRequest(messages=[Message(content="x")]), "messages[0].role"),
    "content": (pb.GenerateRequest(messages=[Message(role=ROLE_USER)]), "messages[0].content"),
    "tools with a prompt": (pb.GenerateRequest(prompt="x", tools=[WEATHER]), "tools"),
    "budget with a prompt": (pb.GenerateRequest(prompt="x", thinking_budget=1), "thinking_budget"),
    "not a number": (pb.GenerateRequest(messages=HELLO, temperature=float("nan")), "temperature"),
    "infinite": (pb.GenerateRequest(messages=HELLO, logit_bias={1: float("inf")}), "logit_bias.1"),
    "too many": (pb.GenerateRequest(messages=HELLO, n=9), "n"),
    "tool's name": (pb.GenerateRequest(messages=HELLO, tools=[Tool()]), "tools[0].function.name"),
    "parameters": (
        pb.GenerateRequest(messages=HELLO, tools=[Tool(function=FunctionDefinition(name="a", parameters="[1"))]),
        "tools[0].function.parameters",
    ),
    "mode": (pb.GenerateRequest(messages=HELLO, tools=[WEATHER], tool_choice=pb.ToolChoice()), "tool_choice.mode"),
    "format": (pb.GenerateRequest(messages=HELLO, response_format=pb.ResponseFormat()), "response_format.type"),
    "schema": (
        pb.GenerateRequest(messages=HELLO, response_format=pb.ResponseFormat(type=3)),
        "response_format.json_schema",
    ),
    "a million turns": (pb.GenerateRequest(messages=[Message(role=ROLE_USER)] * 400_000), "messages"),
    "many stops": (pb.GenerateRequest(messages=HELLO, stop=["x"] * 17), "stop"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_names_the_field(generation: GenerationServiceStub, llm: ToyLLM, name: str) -> None:
    request, param = WRONG[name]
    with pytest.raises(grpc.RpcError) as caught:
        generation.Generate(request)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert dict(error.trailing_metadata())["error-param"] == param, error.details()
    assert param.rpartition(".")[2].partition("[")[0] in error.details()
    assert llm.seen == []


def test_health_follows_the_engine_and_tells_who_watches(llm: ToyLLM, channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for service in ("", GENERATION, "qwenstack.v1.ModelService", "qwenstack.v1.TokenService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
    watch = health.Watch(health_pb2.HealthCheckRequest(service=GENERATION))
    assert next(watch).status == serving
    llm.is_ready = False
    assert next(watch).status == not_serving
    assert health.Check(health_pb2.HealthCheckRequest()).status == not_serving
    assert set(health.List(health_pb2.HealthListRequest()).statuses) >= {"", GENERATION}
    llm.is_ready = True
    assert next(watch).status == serving
    watch.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="x"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="x"))
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def test_reflection_tells_a_tool_that_has_no_proto_files_all_of_the_contract(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    services = set(database.get_services())
    assert services == {
        GENERATION,
        "qwenstack.v1.EmbeddingService",
        "qwenstack.v1.ModelService",
        "qwenstack.v1.TokenService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    method = pool.FindServiceByName(GENERATION).methods_by_name["StreamGenerate"]
    fields = {field.name: field.number for field in method.input_type.fields}
    assert fields == {field.name: field.number for field in pb.GenerateRequest.DESCRIPTOR.fields}


def test_a_caller_is_held_to_the_limits_that_http_counts_too(serve_both: Serve) -> None:
    limits = Limits(requests_per_minute=3, tokens_per_minute=100)
    with serve_both(limits=limits) as (url, address), grpc.insecure_channel(address) as channel:
        generation = GenerationServiceStub(channel)
        generation.Generate(pb.GenerateRequest(messages=HELLO, max_tokens=5))
        with pytest.raises(grpc.RpcError) as refused:
            generation.Generate(pb.GenerateRequest(messages=HELLO, max_tokens=80))
        error: Any = refused.value
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "tokens a minute" in error.details()
        assert int(dict(error.trailing_metadata())["retry-after"]) >= 1
        assert httpx.get(f"{url}/v1/models").status_code == 200
        with pytest.raises(grpc.RpcError, match="3 requests a minute"):
            generation.Generate(pb.GenerateRequest(messages=HELLO, max_tokens=5))
        assert httpx.get(f"{url}/v1/models").status_code == 429


def test_calls_are_counted_by_method_and_code(addresses: tuple[str, str], generation: GenerationServiceStub) -> None:
    generation.Generate(pb.GenerateRequest(messages=HELLO))
    with pytest.raises(grpc.RpcError):
        generation.Generate(pb.GenerateRequest())

    def page() -> str:
        return httpx.get(f"{addresses[0]}/metrics").text

    wait_for(lambda: "INVALID_ARGUMENT" in page())
    for code in ("OK", "INVALID_ARGUMENT"):
        line = f'grpc_server_handled_total{{grpc_code="{code}",grpc_method="/{GENERATION}/Generate"}} 1.0'
        assert line in page()
