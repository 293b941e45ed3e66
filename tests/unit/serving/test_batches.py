"""Batches: the official client against the application in one process."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import msgspec
import openai
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai.types import Batch
from sqlalchemy import update
from toy_embedder import ToyEmbedder
from toy_llm import FULL, ToyLLM

from qwenstack.core.errors import EngineError, RequestError
from qwenstack.core.limits import Limits
from qwenstack.core.request_options import MAX_PRIORITY
from qwenstack.serving import ServeConfig, batch_runner, create_app, line_waits
from qwenstack.serving.batch_input import check_lines, find_lines
from qwenstack.serving.batch_runner import MOST_BATCHES
from qwenstack.serving.batches import SavedCaller
from qwenstack.serving.identity import Access, Identity, KeyRing
from qwenstack.serving.line_waits import LineWaits
from qwenstack.storage import ApiKeys, Database, StoredBatches, StoredFiles, open_database
from qwenstack.storage.schema import batches, files

CHAT = "/v1/chat/completions"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.fixture
def config() -> ServeConfig:
    return ServeConfig(max_body_bytes=2000)


def official(app: FastAPI, key: str) -> AsyncOpenAI:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
    return AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=http, max_retries=0)


@pytest.fixture
async def ask(llm: ToyLLM, config: ServeConfig, database: Database) -> AsyncIterator[AsyncOpenAI]:
    app = create_app(llm, config, database=database)
    async with app.router.lifespan_context(app):
        yield official(app, "any")


def chat(name: str, text: str = "x", **fields: object) -> dict[str, object]:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body}


async def begin(ask: AsyncOpenAI, lines: Sequence[object], *, endpoint: Any = CHAT) -> Batch:
    written = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    file = await ask.files.create(file=("lines.jsonl", written.encode()), purpose="batch")
    return await ask.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"}
    )


async def ended(ask: AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(60):
        while batch.status in {"validating", "in_progress", "finalizing", "cancelling"}:
            await asyncio.sleep(0.02)
            batch = await ask.batches.retrieve(batch.id)
    return batch


async def lines_of(ask: AsyncOpenAI, file_id: str | None) -> list[Any]:
    return (
        [] if file_id is None else [json.loads(line) for line in (await ask.files.content(file_id)).text.splitlines()]
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "你好"}]}),
        ("/v1/completions", {"prompt": "你好", "max_tokens": 100}),
        ("/v1/responses", {"input": "你好"}),
    ],
)
async def test_a_line_is_answered_as_a_request_is_after_all_others(
    ask: AsyncOpenAI, llm: ToyLLM, endpoint: str, body: dict[str, object]
) -> None:
    direct: Any = await ask.post(endpoint.removeprefix("/v1"), cast_to=object, body=body)
    line = {"custom_id": "1", "method": "POST", "url": endpoint, "body": body}
    batch = await ended(ask, await begin(ask, [line], endpoint=endpoint))
    assert (batch.status, batch.metadata, batch.error_file_id) == ("completed", {"a": "b"}, None)
    (answer,) = await lines_of(ask, batch.output_file_id)
    assert (answer["custom_id"], answer["error"], answer["response"]["status_code"]) == ("1", None, 200)
    assert told(answer["response"]["body"]) == told(direct)
    assert llm.options[-1].priority == MAX_PRIORITY
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at, batch.expires_at]
    assert times == sorted(time for time in times if time is not None)
    assert [listed.id async for listed in ask.batches.list()] == [batch.id]


def told(body: Any) -> Any:
    """An answer without its ids and times."""
    if isinstance(body, dict):
        return {
            key: told(value)
            for key, value in body.items()
            if key not in {"id", "created", "created_at", "completed_at"}
        }
    return [told(item) for item in body] if isinstance(body, list) else body


@pytest.mark.anyio
async def test_every_wrong_line_of_a_file_is_told_and_none_is_answered(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    wrong: list[tuple[object, str]] = [
        ("nonsense", "invalid_json"),
        (chat("same"), ""),
        (chat("same"), "duplicate_custom_id"),
        ({**chat("url"), "url": "/v1/completions"}, "mismatched_url"),
        ({**chat("method"), "method": "GET"}, "invalid_value"),
        ({key: value for key, value in chat("x").items() if key != "body"}, "missing_required_parameter"),
        (chat(""), "invalid_value"),
        (chat("long", "x" * 3000), "line_too_long"),
        ("", ""),
        (chat("fine"), ""),
    ]
    batch = await ended(ask, await begin(ask, [line for line, _ in wrong]))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    expected = [(number, code) for number, (_, code) in enumerate(wrong, 1) if code]
    assert [(error.line, error.code) for error in batch.errors.data] == expected
    assert llm.prompts == []
    empty = await ended(ask, await begin(ask, [""]))
    assert empty.errors is not None
    assert empty.errors.data is not None
    assert [error.code for error in empty.errors.data] == ["empty_file"]


@pytest.mark.anyio
async def test_what_a_request_would_be_refused_with_is_in_the_error_file(ask: AsyncOpenAI) -> None:
    lines = [chat("ok"), chat("t", temperature=9), chat("m", model="none"), chat("s", stream=True), chat("f", x=1)]
    batch = await ended(ask, await begin(ask, lines))
    assert [line["custom_id"] for line in await lines_of(ask, batch.output_file_id)] == ["ok"]
    errors = await lines_of(ask, batch.error_file_id)
    assert [(line["custom_id"], line["response"]["status_code"]) for line in errors] == [
        ("t", 400),
        ("m", 404),
        ("s", 400),
        ("f", 400),
    ]
    assert [line["response"]["body"]["error"]["param"] for line in errors] == ["temperature", "model", "stream", "x"]


@pytest.mark.anyio
async def test_lines_wait_where_there_is_no_room(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.error = FULL
    begun = await begin(ask, [chat("a")])
    async with asyncio.timeout(20):
        while not llm.prompts:
            await asyncio.sleep(0.01)
    llm.error = None
    batch = await ended(ask, begun)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed) == ("completed", 1)


@pytest.mark.anyio
async def test_batches_that_only_wait_leave_their_places_to_others(
    llm: ToyLLM, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Mock(side_effect=batch_runner.check_lines)
    monkeypatch.setattr(batch_runner, "check_lines", check)
    keys = ApiKeys(database)
    few, many = Limits(tokens_per_day=75), Limits(tokens_per_day=10_000)
    spent = [keys.create(name="n", tenant=f"t{number}", actor="me", limits=few) for number in range(MOST_BATCHES)]
    free = keys.create(name="n", tenant="free", actor="me")
    llm.endless = True  # so that an answer takes all that it may
    app = create_app(llm, ServeConfig(lease_s=0.3), database=database)
    async with app.router.lifespan_context(app):
        lines = [chat(str(number), max_tokens=40) for number in range(3)]
        waiting = [await begin(official(app, key.text), lines) for key in spent]
        batch = await ended(official(app, free.text), await begin(official(app, free.text), lines))
        assert batch.status == "completed"
        for key, begun in zip(spent, waiting, strict=True):
            now = await official(app, key.text).batches.retrieve(begun.id)
            assert now.request_counts is not None
            assert (now.status, now.request_counts.completed) == ("in_progress", 1)
    store = StoredBatches(database)
    waits = [store.find(begun.id, tenant=key.key.tenant) for key, begun in zip(spent, waiting, strict=True)]
    assert all(wait is not None and (wait.not_before_ms or 0) > time.time() * 1000 for wait in waits)
    for key in spent:
        keys.limit(key.key.id, many, actor="me")
    num_asked = len(llm.prompts)
    app = create_app(llm, ServeConfig(lease_s=0.3), database=database)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0.5)
        assert len(llm.prompts) == num_asked  # a restart shortens no wait
        database.write(lambda connection: connection.execute(update(batches).values(not_before_ms=1)))
        for key, begun in zip(spent, waiting, strict=True):
            ask = official(app, key.text)
            batch = await ended(ask, begun)
            answers = await lines_of(ask, batch.output_file_id)
            assert (batch.status, [line["custom_id"] for line in answers]) == ("completed", ["0", "1", "2"])
    assert len(llm.prompts) == 3 * (len(spent) + 1)
    assert check.call_count == len(spent) + 1  # who comes back is not checked again


@pytest.mark.anyio
async def test_a_long_batch_gives_its_place_to_one_that_is_due(
    ask: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "TURN_S", 0.0)
    monkeypatch.setattr(batch_runner, "WATCH_EVERY_S", 0.01)
    long = await begin(ask, [chat(str(number)) for number in range(400)])
    short = await ended(ask, await begin(ask, [chat("short")]))
    assert short.status == "completed"
    assert (await ask.batches.retrieve(long.id)).status == "in_progress"
    long = await ended(ask, long)
    answers = await lines_of(ask, long.output_file_id)
    assert [line["custom_id"] for line in answers] == [str(number) for number in range(400)]


LINES = st.lists(st.one_of(st.just(""), st.just("  "), st.text(max_size=8)), min_size=1, max_size=12, unique=True)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_lines_are_found_again_where_they_were_checked(names: list[str], end: str, ends_with_one: bool) -> None:
    lines = [json.dumps(chat(name or "x")) if name.strip() else name for name in names]
    with tempfile.TemporaryFile() as content:
        content.write((end.join(lines) + (end if ends_with_one else "")).encode())
        content.flush()
        checked = check_lines(content, endpoint=CHAT, max_line_bytes=5000)
        if not checked.errors:
            assert find_lines(content) == checked.places


@pytest.mark.anyio
async def test_a_batch_leaves_only_when_nothing_of_it_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_waits, "LONGEST_STAY_S", 5.0)
    waits = LineWaits(3)
    sleeping = [asyncio.create_task(waits.wait(wait_s)) for wait_s in (60, 40)]
    await asyncio.sleep(0)
    assert not waits.leaving.done()
    waits.end_work()
    assert 39 < await waits.leaving < 41
    waits = LineWaits(2)
    sleeping += [asyncio.create_task(waits.wait(wait_s)) for wait_s in (60, 4)]
    await asyncio.sleep(0)
    assert not waits.leaving.done()  # it is worth to stay for the second
    for task in sleeping:
        task.cancel()
    waits = LineWaits(1)
    waits.end_work()
    assert not waits.leaving.done()


@pytest.mark.anyio
async def test_a_batch_tells_what_its_answers_took(ask: AsyncOpenAI) -> None:
    wishes = {
        CHAT: {"messages": [{"role": "user", "content": "你好"}]},
        "/v1/completions": {"prompt": "你好", "max_tokens": 100},
        "/v1/responses": {"input": "你好"},
    }
    for endpoint, body in wishes.items():
        lines = [{"custom_id": str(n), "method": "POST", "url": endpoint, "body": body} for n in range(2)]
        refused = {"custom_id": "x", "method": "POST", "url": endpoint, "body": body | {"model": "none"}}
        batch = await ended(ask, await begin(ask, [*lines, refused], endpoint=endpoint))
        used = [line["response"]["body"]["usage"] for line in await lines_of(ask, batch.output_file_id)]
        assert batch.usage is not None
        assert batch.usage.total_tokens == sum(each["total_tokens"] for each in used) > 0
        assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
        assert batch.usage.input_tokens_details.cached_tokens == 2 * 3  # of each prompt, as the toy says
        assert batch.usage.output_tokens_details.reasoning_tokens == 0


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["float", "base64"])
async def test_lines_of_vectors_are_what_a_request_gets_and_are_counted(
    llm: ToyLLM, config: ServeConfig, database: Database, form: str
) -> None:
    app = create_app(llm, config, database=database, embedder=ToyEmbedder())
    async with app.router.lifespan_context(app):
        ask = official(app, "any")
        body = {"input": ["abc", "h"], "encoding_format": form}
        direct: Any = await ask.post("/embeddings", cast_to=object, body=body)
        line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body}
        batch = await ended(ask, await begin(ask, [line], endpoint="/v1/embeddings"))
        (answer,) = await lines_of(ask, batch.output_file_id)
    assert answer["response"]["body"] == direct
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (4, 0)


@pytest.mark.anyio
async def test_a_line_that_is_refused_after_a_failure_of_ours_is_not_tried_again(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.error = EngineError("broken")
    begun = await begin(ask, [chat("a")])
    async with asyncio.timeout(20):
        while not llm.prompts:
            await asyncio.sleep(0.01)
    llm.error = RequestError("The text is not for this model.", param="messages")
    async with asyncio.timeout(20):
        batch = await ended(ask, begun)
    (line,) = await lines_of(ask, batch.error_file_id)
    assert (batch.status, line["response"]["status_code"], len(llm.prompts)) == ("completed", 400, 2)


@pytest.mark.anyio
async def test_sec_09_a_batch_writes_no_more_than_its_tenant_may_keep(llm: ToyLLM, database: Database) -> None:
    app = create_app(llm, ServeConfig(max_files_bytes=12_000), database=database)
    async with app.router.lifespan_context(app):
        ask = official(app, "any")
        batch = await ended(ask, await begin(ask, [chat(str(number)) for number in range(40)]))
        kept = await lines_of(ask, batch.output_file_id)
        sizes = [file.bytes async for file in ask.files.list()]
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [error.code for error in batch.errors.data] == ["quota_exceeded"]
    assert 0 < len(kept) == len({line["custom_id"] for line in kept}) < 40
    assert 8_000 < sum(sizes) <= 12_000


@pytest.mark.anyio
async def test_sec_09_a_batch_whose_room_is_filled_meanwhile_leaves_no_file(
    llm: ToyLLM, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = iter([1_000_000])
    monkeypatch.setattr(StoredFiles, "room", lambda self, tenant: next(rooms, 10))
    app = create_app(llm, ServeConfig(), database=database)
    begun = await begin(official(app, "any"), [chat("a")])
    rooms = iter([1_000_000])
    async with app.router.lifespan_context(app):
        batch = await ended(official(app, "any"), begun)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [error.code for error in batch.errors.data] == ["quota_exceeded"]


@pytest.mark.anyio
async def test_a_cancelled_batch_stops_and_keeps_what_was_answered(ask: AsyncOpenAI, llm: ToyLLM) -> None:
    llm.step_s = 0.002
    begun = await begin(ask, [chat(str(number)) for number in range(200)])
    async with asyncio.timeout(30):
        while (await ask.batches.retrieve(begun.id)).request_counts.completed == 0:  # type: ignore[union-attr]
            await asyncio.sleep(0.02)
    with pytest.raises(openai.ConflictError, match="reads the file"):
        await ask.files.delete(begun.input_file_id)
    assert (await ask.batches.cancel(begun.id)).status == "cancelling"
    batch = await ended(ask, begun)
    assert (batch.status, llm.num_open) == ("cancelled", 0)
    assert batch.request_counts is not None
    assert len(await lines_of(ask, batch.output_file_id)) == batch.request_counts.completed < 200
    assert (await ask.batches.cancel(begun.id)).status == "cancelled"
    await ask.files.delete(begun.input_file_id)


@pytest.mark.anyio
async def test_wrong_wishes_are_refused_by_name(ask: AsyncOpenAI) -> None:
    file = await ask.files.create(file=("f", b"x"), purpose="user_data")
    wish: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError, match="with the purpose 'batch'"):
        await ask.batches.create(**wish)
    for change, status in (
        ({"endpoint": "/v1/images/generations"}, 400),
        ({"completion_window": "1h"}, 400),
        ({"input_file_id": "file-" + "0" * 32}, 404),
    ):
        with pytest.raises(openai.APIStatusError) as error:
            await ask.batches.create(**(wish | change))
        assert error.value.status_code == status


@pytest.mark.anyio
async def test_sec_12_a_batch_may_what_its_key_may_when_a_line_is_answered(
    llm: ToyLLM, config: ServeConfig, database: Database
) -> None:
    keys = ApiKeys(database)
    narrow = keys.create(name="n", tenant="ours", actor="me", models=["another"])
    gone = keys.create(name="n", tenant="gone", actor="me")
    other = keys.create(name="n", tenant="theirs", actor="me")
    stopped = create_app(llm, config, database=database)  # takes batches and runs none
    begun = [await begin(official(stopped, key.text), [chat("a")]) for key in (narrow, gone)]
    keys.revoke(gone.key.id, actor="me")
    heir = keys.create(name="n", tenant="gone", actor="me")
    app = create_app(llm, config, database=database)
    async with app.router.lifespan_context(app):
        for key, batch, code in ((narrow, begun[0], "model_not_allowed"), (heir, begun[1], "invalid_api_key")):
            ask = official(app, key.text)
            (line,) = await lines_of(ask, (await ended(ask, batch)).error_file_id)
            assert line["response"]["body"]["error"]["code"] == code
        stranger = official(app, other.text)
        for wish in (stranger.batches.retrieve(begun[0].id), stranger.batches.cancel(begun[0].id)):
            with pytest.raises(openai.NotFoundError):
                await wish
        assert [batch async for batch in stranger.batches.list()] == []
        with pytest.raises(openai.NotFoundError):
            await begin_with(stranger, begun[0].input_file_id)
    assert llm.prompts == []


@pytest.mark.anyio
async def test_sec_12_a_batch_of_a_configured_key_ends_with_the_key(llm: ToyLLM, database: Database) -> None:
    both = create_app(llm, ServeConfig(api_keys=("kept-kept-kept-1", "gone-gone-gone-1")), database=database)
    kept = await begin(official(both, "kept-kept-kept-1"), [chat("a")])
    gone = await begin(official(both, "gone-gone-gone-1"), [chat("a")])
    one = create_app(llm, ServeConfig(api_keys=("kept-kept-kept-1",)), database=database)
    async with one.router.lifespan_context(one):
        assert (await ended(official(one, "kept-kept-kept-1"), kept)).error_file_id is None
        store = StoredBatches(database)
        tenant = KeyRing(["gone-gone-gone-1"]).identify("gone-gone-gone-1", now_ms=0).tenant
        async with asyncio.timeout(20):
            while (row := store.find(gone.id, tenant=tenant)) is None or row.status != "completed":
                await asyncio.sleep(0.02)
    assert (row.num_completed, row.num_failed, len(llm.prompts)) == (0, 1, 1)


def test_sec_12_whoever_made_a_batch_is_the_same_later_as_long_as_what_they_showed_is_good() -> None:
    shown = Identity(
        tenant="t", subject="u1", accesses=frozenset({Access.INFERENCE}), models=frozenset({"m"}), expires_at_s=100.0
    )
    saved = msgspec.json.decode(msgspec.json.encode(SavedCaller.of(shown)), type=SavedCaller)
    ring = KeyRing(["configured"])
    later = saved.now("t", ring, takes_tokens=True, now_s=99)
    assert later == shown
    assert later is not None
    assert (later.account, later.expires_at_s) == ("oidc:u1", 100.0)
    assert saved.now("t", ring, takes_tokens=True, now_s=100) is None
    assert saved.now("t", ring, takes_tokens=False, now_s=99) is None

    configured = ring.identify("configured", now_ms=0)
    saved = SavedCaller.of(configured)
    assert saved.now(configured.tenant, ring, takes_tokens=True, now_s=0) == configured
    assert saved.now(configured.tenant, KeyRing(["another"]), takes_tokens=True, now_s=0) is None
    assert saved.now(configured.tenant, KeyRing(), takes_tokens=True, now_s=0) is None

    anybody = KeyRing().identify(None, now_ms=0)
    saved = SavedCaller.of(anybody)
    assert saved.now("", KeyRing(), takes_tokens=False, now_s=0) == anybody
    assert saved.now("", ring, takes_tokens=True, now_s=0) is None


@pytest.mark.anyio
async def test_a_batch_reads_its_input_though_it_has_expired_meanwhile(
    llm: ToyLLM, config: ServeConfig, database: Database
) -> None:
    begun = await begin(official(create_app(llm, config, database=database), "any"), [chat("a")])
    expire = update(files).where(files.c.id == begun.input_file_id).values(expires_at_ms=1)
    database.write(lambda connection: connection.execute(expire))
    app = create_app(llm, config, database=database)
    async with app.router.lifespan_context(app):
        ask = official(app, "any")
        with pytest.raises(openai.NotFoundError):
            await ask.files.content(begun.input_file_id)
        batch = await ended(ask, begun)
    assert (batch.status, len(llm.prompts)) == ("completed", 1)


async def begin_with(ask: AsyncOpenAI, file_id: str) -> Batch:
    return await ask.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
