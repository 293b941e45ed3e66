"""Responses: the official client against the application in one process, and the writer against what it was told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai.types.responses import Response as OfficialResponse
from toy_llm import FULL, ToyLLM

from qwenstack.core.errors import EngineError, StorageError
from qwenstack.core.limits import Limits
from qwenstack.core.outputs import CompletionOutput, OutputDelta, ToolCallDelta
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.identity import STRANGER
from qwenstack.serving.responses import MOST_IN_BACKGROUND
from qwenstack.serving.service import GenerationJob, Prompt, UsageTally
from qwenstack.serving.wire.response_events import ResponseWriter
from qwenstack.storage import ApiKeys, Database, ServerLease, StoredResponse, StoredResponses, open_database

ECHO = "echo: [user] 你好"
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


Connect = Callable[[str], AsyncOpenAI]


@contextlib.asynccontextmanager
async def serving(llm: ToyLLM, database: Database, config: ServeConfig | None = None) -> AsyncIterator[Connect]:
    """Run the application; what it gives makes clients for keys."""
    app = create_app(llm, config or ServeConfig(), database=database)
    transport = httpx2.ASGITransport(app)
    clients: list[AsyncOpenAI] = []

    def connect(key: str) -> AsyncOpenAI:
        http = httpx2.AsyncClient(transport=transport)
        clients.append(AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=http, max_retries=0))
        return clients[-1]

    async with app.router.lifespan_context(app):
        yield connect
        for client in clients:
            await client.close()


@pytest.fixture
async def ask(llm: ToyLLM, database: Database) -> AsyncIterator[AsyncOpenAI]:
    async with serving(llm, database) as connect:
        yield connect("any")


@pytest.mark.anyio
async def test_a_response_answers_and_is_kept(ask: AsyncOpenAI) -> None:
    made = await ask.responses.create(model="default", input="你好", metadata={"who": "me"}, temperature=0)
    assert (made.output_text, made.status, made.model, made.error) == (ECHO, "completed", "toy/echo", None)
    assert made.usage is not None
    assert made.usage.output_tokens == len(ECHO.encode()) + 1
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    kept = await ask.responses.retrieve(made.id)
    assert kept == made
    (item,) = (await ask.responses.input_items.list(made.id)).data
    assert item.to_dict()["content"] == [{"type": "input_text", "text": "你好"}]
    await ask.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match="was deleted"):
        await ask.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await ask.responses.delete(made.id)


@pytest.mark.anyio
async def test_a_conversation_reads_as_the_same_chat(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.says = CALL
    first = await ask.responses.create(model="default", input="how is it in 北京?", tools=[WEATHER])
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "北京"})
    llm.says = "<think>dry</think>fine"
    second = await ask.responses.create(
        model="default",
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        tools=[WEATHER],
    )
    assert [item.type for item in second.output] == ["reasoning", "message"]
    assert second.output_text == "fine"
    await ask.responses.create(
        model="default",
        previous_response_id=second.id,
        instructions="be short",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "and now?"}]}],
        tools=[WEATHER],
    )
    function = {"name": "weather", "parameters": {"type": "object"}}
    messages: Any = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "how is it in 北京?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "assistant", "content": "fine", "reasoning_content": "dry"},
        {"role": "user", "content": "and now?"},
    ]
    await ask.chat.completions.create(
        model="default", messages=messages, tools=[{"type": "function", "function": function}]
    )  # type: ignore[list-item]
    assert llm.prompts[-1] == llm.prompts[-2]
    assert llm.seen[-1] == llm.seen[-2]


@pytest.mark.anyio
async def test_the_stream_helper_gathers_what_is_kept(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.says = f"<think>好 well</think>First 一.{CALL}"
    async with ask.responses.stream(model="default", input="x", tools=[WEATHER]) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == "response.completed"
    assert "response.reasoning_text.delta" in types
    assert "response.function_call_arguments.delta" in types
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    raw = [
        event async for event in await ask.responses.create(model="default", input="x", tools=[WEATHER], stream=True)
    ]
    assert [event.type for event in raw] == types
    assert raw[-1].type == "response.completed"
    assert await ask.responses.retrieve(raw[-1].response.id) == raw[-1].response
    assert raw[-1].response.output_text == final.output_text == "First 一."


@pytest.mark.anyio
async def test_an_answer_that_is_cut_is_incomplete(ask: AsyncOpenAI) -> None:
    made = await ask.responses.create(model="default", input="你好", max_output_tokens=6)
    assert (made.status, made.output_text) == ("incomplete", ECHO[:6])
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.output[0].status == "incomplete"


@pytest.mark.anyio
async def test_a_conversation_goes_on_after_a_call_that_was_cut(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.says = CALL
    length = len(CALL.encode()) - 25
    cut = await ask.responses.create(model="default", input="x", tools=[WEATHER], max_output_tokens=length)
    (call,) = cut.output
    assert (call.type, call.status) == ("function_call", "incomplete")
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.arguments)
    llm.says = None
    after = await ask.responses.create(model="default", previous_response_id=cut.id, input="你好")
    assert after.output_text == ECHO
    assert bytes(llm.prompts[-1]).decode() == "[user] x\n[user] 你好"


@pytest.mark.anyio
async def test_formats_and_effort_become_what_chat_makes_of_them(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await ask.responses.create(
        model="default", input="x", text={"format": {"type": "json_schema", "name": "n", "schema": schema}}
    )
    chat_format: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    message: Any = [{"role": "user", "content": "x"}]
    await ask.chat.completions.create(model="default", messages=message, response_format=chat_format)
    assert llm.seen[-1] == llm.seen[-2]
    for effort, prefix, budget in (("none", b"[thinking] False", None), ("low", b"[thinking] True", 1024)):
        await ask.responses.create(model="default", input="x", reasoning={"effort": effort})  # type: ignore[arg-type]
        assert bytes(llm.prompts[-1]).startswith(prefix)
        assert llm.seen[-1].thinking_budget == budget
        await ask.chat.completions.create(model="default", messages=message, reasoning_effort=effort)  # type: ignore[call-overload]
        assert bytes(llm.prompts[-1]).startswith(prefix)
        assert llm.seen[-1].thinking_budget == budget
    for other in ({"enable_thinking": True}, {"thinking_budget": 512}):
        with pytest.raises(openai.BadRequestError, match="give one of them"):
            await ask.chat.completions.create(
                model="default", messages=message, reasoning_effort="none", extra_body=other
            )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, {"type": "computer_use_preview", "display_width": 1}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[]"}]}, "input[0].arguments"),
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": "resp_nothing"}, "previous_response_id"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"max_output_tokens": 513}, "max_output_tokens"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(ask: AsyncOpenAI, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as error:
        await ask.responses.create(**({"model": "default", "input": "x"} | wrong))  # type: ignore[call-overload]
    assert error.value.param == param
    assert "`" in error.value.message or "no response" in error.value.message


@pytest.mark.anyio
async def test_hosted_tools_are_refused_with_a_way_on(ask: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"runs no tools. Give tools of type 'function'"):
        await ask.responses.create(model="default", input="x", tools=[{"type": "web_search"}])


@pytest.mark.anyio
async def test_an_engine_without_room_is_a_status_and_one_that_fails_later_an_event(
    ask: AsyncOpenAI, llm: ToyLLM
) -> None:
    llm.error = FULL
    with pytest.raises(openai.InternalServerError, match="queue is full"):
        await ask.responses.create(model="default", input="x", stream=True)
    llm.error, llm.fail_after = None, 3
    events = [event async for event in await ask.responses.create(model="default", input="x", stream=True)]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.code == "server_error"
    assert "secret" not in events[-1].to_json()
    kept = await ask.responses.retrieve(events[-1].response.id)
    assert (kept.status, kept.error) == ("failed", events[-1].response.error)
    with pytest.raises(openai.InternalServerError):
        await ask.responses.create(model="default", input="x")


@pytest.mark.anyio
async def test_what_is_not_to_be_stored_is_not(ask: AsyncOpenAI, database: Database) -> None:
    made = await ask.responses.create(model="default", input="a secret wish", store=False)
    assert (made.output_text, made.store) == ("echo: [user] a secret wish", False)
    with pytest.raises(openai.NotFoundError):
        await ask.responses.retrieve(made.id)
    assert database.path is not None
    assert b"secret wish" not in b"".join(
        path.read_bytes() for path in database.path.parent.iterdir() if path.is_file()
    )


@pytest.mark.anyio
async def test_without_a_database_nothing_is_kept_and_that_is_told(llm: ToyLLM) -> None:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(create_app(llm, ServeConfig())))
    async with AsyncOpenAI(base_url="http://localhost/v1", api_key="any", http_client=http) as ask:
        made = await ask.responses.create(model="default", input="你好")
        assert (made.output_text, made.store) == (ECHO, False)
        for wish in ({"store": True}, {"background": True}, {"previous_response_id": made.id}):
            with pytest.raises(openai.BadRequestError, match=r"`storage.url` is off"):
                await ask.responses.create(model="default", input="x", **wish)  # type: ignore[call-overload]
        with pytest.raises(openai.BadRequestError, match=r"`storage.url` is off"):
            await ask.responses.retrieve(made.id)


async def ended(ask: AsyncOpenAI, response_id: str) -> OfficialResponse:
    async with asyncio.timeout(20):
        while True:
            response = await ask.responses.retrieve(response_id)
            if response.status != "in_progress":
                return response
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_background_response_goes_on_alone_and_can_be_followed(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.step_s = 0.002
    begun = await ask.responses.create(model="default", input="你好", background=True)
    assert begun.status == "in_progress"
    events = [event async for event in await ask.responses.retrieve(begun.id, stream=True)]
    assert events[-1].type == "response.completed"
    later = [event async for event in await ask.responses.retrieve(begun.id, stream=True, starting_after=4)]
    assert later == events[5:]
    assert (await ended(ask, begun.id)).output_text == ECHO
    assert (await ask.responses.cancel(begun.id)).status == "completed"
    with pytest.raises(openai.BadRequestError, match="not made in the background"):
        await ask.responses.cancel((await ask.responses.create(model="default", input="x")).id)


@pytest.mark.anyio
@pytest.mark.parametrize("limits", [Limits(tokens_per_minute=60), Limits(tokens_per_day=60)])
async def test_a_background_response_over_a_limit_is_refused_and_not_kept(
    llm: ToyLLM, database: Database, limits: Limits
) -> None:
    llm.endless = True
    async with serving(llm, database, ServeConfig(limits=limits)) as connect:
        ask = connect("any")
        await ask.responses.create(model="default", input="x", max_output_tokens=40)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as refused:
                await ask.responses.create(
                    model="default", input="x", max_output_tokens=40, background=True, stream=stream
                )
            assert int(refused.value.response.headers["retry-after"]) > 0
    assert len(llm.seen) == 1


@pytest.mark.anyio
async def test_background_responses_that_come_at_once_are_held_to_the_limits_together(
    llm: ToyLLM, database: Database
) -> None:
    llm.endless = True
    async with serving(llm, database, ServeConfig(limits=Limits(concurrent_requests=1))) as connect:
        ask = connect("any")
        asked = [
            ask.responses.create(model="default", input="x", max_output_tokens=4, background=True) for _ in range(6)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        begun = [answer for answer in answers if isinstance(answer, OfficialResponse)]
        assert len(begun) == 1
        assert all(isinstance(answer, openai.RateLimitError) for answer in answers if answer not in begun)
        assert (await ended(ask, begun[0].id)).status == "incomplete"
        await ask.responses.create(model="default", input="x", max_output_tokens=4)  # the place is free again


@pytest.mark.anyio
async def test_a_wrong_item_behind_an_earlier_response_has_the_number_that_the_request_gives_it(
    llm: ToyLLM, database: Database
) -> None:
    async with serving(llm, database) as connect:
        ask = connect("any")
        earlier = await ask.responses.create(model="default", input="x")
        wrong: Any = [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[]"}]
        with pytest.raises(openai.BadRequestError) as refused:
            await ask.responses.create(model="default", input=wrong, previous_response_id=earlier.id)
        assert refused.value.param == "input[0].arguments"


@pytest.mark.anyio
async def test_a_background_stream_goes_on_when_its_reader_leaves(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.step_s = 0.002
    stream = await ask.responses.create(model="default", input="你好", background=True, stream=True)
    first = await anext(aiter(stream))
    await stream.close()
    assert first.type == "response.created"
    assert (await ended(ask, first.response.id)).output_text == ECHO


@pytest.mark.anyio
async def test_a_cancelled_response_ends_in_the_engine_too(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.endless, llm.step_s = True, 0.001
    begun = [await ask.responses.create(model="default", input="x", background=True) for _ in range(2)]
    assert (await ask.responses.cancel(begun[0].id)).status == "cancelled"
    assert llm.num_open == 1
    await ask.responses.delete(begun[1].id)
    assert llm.num_open == 0
    assert (await ask.responses.retrieve(begun[0].id)).status == "cancelled"


@pytest.mark.anyio
async def test_a_background_response_that_has_just_begun_is_not_taken_for_one_that_was_ended(
    llm: ToyLLM, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_looked, is_kept = threading.Event(), threading.Event()
    put, begun_by = StoredResponses.put, StoredResponses.begun_by

    def put_late(store: StoredResponses, response: StoredResponse) -> None:
        has_looked.wait(2)
        put(store, response)
        is_kept.set()

    def look_early(store: StoredResponses, owner: str) -> dict[str, str]:
        found = begun_by(store, owner)
        has_looked.set()
        is_kept.wait(20)
        time.sleep(0.2)  # so that the run has its task
        return found

    monkeypatch.setattr(StoredResponses, "put", put_late)
    monkeypatch.setattr(StoredResponses, "begun_by", look_early)
    llm.step_s = 0.02
    async with serving(llm, database, ServeConfig(lease_s=0.3)) as connect:
        ask = connect("any")
        first = await ask.responses.create(model="default", input="你好", background=True)
        second = await ask.responses.create(model="default", input="你好", background=True)
        assert [(await ended(ask, begun.id)).output_text for begun in (first, second)] == [ECHO, ECHO]


@pytest.mark.anyio
async def test_a_background_response_that_is_stopped_comes_to_an_end_whoever_stops_it(
    ask: AsyncOpenAI, llm: ToyLLM
) -> None:
    llm.endless, llm.step_s = True, 0.01
    begun = await ask.responses.create(model="default", input="x", background=True)
    (task,) = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == "_run"]
    while not llm.num_open:
        await asyncio.sleep(0.01)
    task.cancel()
    assert (await ended(ask, begun.id)).status == "cancelled"


@pytest.mark.anyio
@pytest.mark.parametrize("is_remembered", [True, False])
async def test_a_background_response_whose_last_write_failed_gets_its_end_later(
    llm: ToyLLM, database: Database, monkeypatch: pytest.MonkeyPatch, is_remembered: bool
) -> None:
    finish, num_refused = StoredResponses.finish, 0

    def finish_at_second_try(store: StoredResponses, *args: Any, **kwargs: Any) -> bool:
        nonlocal num_refused
        num_refused += 1
        if num_refused == 1:
            raise StorageError("The disk is full.")
        return finish(store, *args, **kwargs)

    monkeypatch.setattr(StoredResponses, "finish", finish_at_second_try)
    monkeypatch.setattr("qwenstack.serving.responses.MOST_REMEMBERED", 1 if is_remembered else 0)
    async with serving(llm, database, ServeConfig(lease_s=0.3)) as connect:
        ask = connect("any")
        response = await ended(ask, (await ask.responses.create(model="default", input="你好", background=True)).id)
    assert num_refused > 1
    assert (response.status, response.output_text) == (("completed", ECHO) if is_remembered else ("failed", ""))
    assert response.error is None or response.error.code == "server_error"


@pytest.mark.anyio
async def test_what_a_server_makes_when_it_stops_is_told_as_failed(llm: ToyLLM, database: Database) -> None:
    llm.endless, llm.step_s = True, 0.01
    async with serving(llm, database) as connect:
        begun = await connect("any").responses.create(model="default", input="x", background=True)
    record = StoredResponses(database, retention_s=1000).find(begun.id, tenant="")
    assert record is not None
    assert (record.status, record.owner, llm.num_open) == ("failed", None, 0)


@pytest.mark.anyio
async def test_a_background_response_fails_where_a_request_would(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.error = EngineError("secret")
    begun = await ask.responses.create(model="default", input="x", background=True)
    failed = await ended(ask, begun.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "secret" not in failed.error.message


@pytest.mark.anyio
async def test_sec_09_background_responses_of_a_tenant_are_bounded(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.endless, llm.step_s = True, 0.01
    for _ in range(MOST_IN_BACKGROUND):
        begun = await ask.responses.create(model="default", input="x", background=True)
    with pytest.raises(openai.InternalServerError, match="unfinished"):
        await ask.responses.create(model="default", input="x", background=True)
    await ask.responses.cancel(begun.id)
    await ask.responses.create(model="default", input="x", background=True)


@pytest.mark.anyio
async def test_sec_09_items_and_metadata_are_bounded(ask: AsyncOpenAI) -> None:
    turn: Any = {"role": "user", "content": "x"}
    for wrong, param in (
        ({"input": [turn] * 1025}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": ""}] * 1025}]}, "input[0].content"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"temperature": 3}, "temperature"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            await ask.responses.create(**({"model": "default", "input": "x"} | wrong))  # type: ignore[call-overload]
        assert error.value.param == param


@pytest.mark.anyio
async def test_sec_17_a_tenant_finds_its_own_responses_alone_under_ids_of_the_server(
    llm: ToyLLM, database: Database
) -> None:
    keys = ApiKeys(database)
    texts = [keys.create(name="n", tenant=tenant, actor="me").text for tenant in ("ours", "ours", "theirs")]
    async with serving(llm, database) as connect:
        own, colleague, other = (connect(text) for text in texts)
        made = await own.responses.create(model="default", input="x", background=True)
        assert re.fullmatch("resp_[0-9a-f]{32}", made.id)
        await ended(colleague, made.id)
        for wish in (
            other.responses.retrieve(made.id),
            other.responses.cancel(made.id),
            other.responses.delete(made.id),
            other.responses.retrieve(made.id, stream=True),
            other.responses.create(model="default", input="x", previous_response_id=made.id),
            other.responses.input_items.list(made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await wish
        assert (await own.responses.retrieve(made.id)).status == "completed"


@pytest.mark.anyio
async def test_what_a_dead_server_began_is_told_as_failed(llm: ToyLLM, database: Database, ask: AsyncOpenAI) -> None:
    begun = await ask.responses.create(model="default", input="x", background=True)
    await ended(ask, begun.id)
    store = StoredResponses(database, retention_s=1000)
    record = store.find(begun.id, tenant="")
    assert record is not None
    dead = ServerLease(database, lease_s=10, clock=lambda: 5.0)
    dead.renew()
    store.delete(begun.id, tenant="")
    document = json.dumps(json.loads(record.document) | {"status": "in_progress"})
    store.put(replace(record, owner=dead.id, document=document, status="in_progress"))
    app = create_app(llm, ServeConfig(), database=database)
    async with app.router.lifespan_context(app):
        failed = await ask.responses.retrieve(begun.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.type) == ("server_error", "server_restarted")


STEPS = st.lists(st.tuples(st.sampled_from(["text", "thought", "call", "arguments"]), st.text(min_size=1, max_size=4)))
JOB = GenerationJob(
    request_id="r", prompts=[Prompt(token_ids=[1])], params=SamplingParams(), options=RequestOptions(), caller=STRANGER
)
EMPTY: Any = {"id": "r", "status": "in_progress", "output": []}


def said(steps: list[tuple[str, str]]) -> list[OutputDelta]:
    """What an engine says; arguments come to the last call, if nothing has come between."""
    deltas: list[OutputDelta] = []
    num_calls = 0
    for kind, text in steps:
        if kind == "text":
            deltas.append(OutputDelta(request_id="r", text=text))
        elif kind == "thought":
            deltas.append(OutputDelta(request_id="r", reasoning_text=text))
        elif kind == "call":
            deltas.append(OutputDelta(request_id="r", tool_calls=[ToolCallDelta(index=num_calls, name=text)]))
            num_calls += 1
        elif deltas and deltas[-1].tool_calls:
            last = ToolCallDelta(index=num_calls - 1, arguments=text)
            deltas.append(OutputDelta(request_id="r", tool_calls=[last]))
    return deltas


@given(steps=STEPS, is_cut=st.booleans())
@settings(deadline=None)
def test_events_and_response_hold_what_the_engine_said(steps: list[tuple[str, str]], is_cut: bool) -> None:
    answer, writer, tally = CompletionOutput(index=0), ResponseWriter(EMPTY), UsageTally(JOB)
    events: list[Any] = [*writer.begin()]
    for delta in said(steps):
        answer.add(delta)
        events += writer.write(delta)
    events += writer.finish(tally, is_cut=is_cut)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == ("response.incomplete" if is_cut else "response.completed")
    response: Any = events[-1]["response"]
    assert response == writer.response
    texts: dict[str, list[str]] = {"message": [], "reasoning": [], "function_call": []}
    for index, item in enumerate(response["output"]):
        own = [event for event in events if event.get("output_index") == index]
        grown = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        texts[item["type"]].append(whole)
        assert grown == whole
        assert (own[0]["type"], own[-1]["type"]) == ("response.output_item.added", "response.output_item.done")
        assert own[-1]["item"] == item
        assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}
    assert "".join(texts["message"]) == answer.text
    assert "".join(texts["reasoning"]) == answer.reasoning_text
    assert texts["function_call"] == [call.arguments for call in answer.tool_calls]
