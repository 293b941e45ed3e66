"""Our own client's files and batches, over the application itself with a database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from toy_llm import ToyLLM

from qwenstack.client import (
    AsyncClient,
    BadRequestError,
    Batch,
    BatchAnswer,
    BatchError,
    ChatCompletion,
    Client,
    Completion,
    ConnectionFailedError,
    Embeddings,
    NotFoundError,
    RetryPolicy,
    UnreadableAnswerError,
)
from qwenstack.serving import ServeConfig, create_app
from qwenstack.storage import open_database

POLL_S = 0.02


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def app(llm: ToyLLM, tmp_path: Path) -> AsyncGenerator[FastAPI]:
    database = open_database(f"sqlite:///{tmp_path / 'q.db'}")
    app = create_app(llm, ServeConfig(max_upload_bytes=1 << 20), database=database)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(transport=httpx.ASGITransport(app), retries=RetryPolicy(max_retries=0)) as client:
        yield client


def question(text: str, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.anyio
async def test_what_was_uploaded_from_a_path_comes_back_to_a_path(client: AsyncClient, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    source, target = tmp_path / 'a "名" b.bin', tmp_path / "back"
    source.write_bytes(content)
    file = await client.files.create(source, purpose="user_data", expires_after_s=3600)
    assert (file.bytes, file.purpose) == (len(content), "user_data")
    assert file.expires_at == file.created_at + 3600
    assert await client.files.retrieve(file.id) == file
    assert await client.files.content(file.id) == content
    target.write_text("what was there")
    assert await client.files.download(file.id, target) == target
    assert target.read_bytes() == content
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(NotFoundError):
        await client.files.download(file.id, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir() if "none" in path.name) == []


@pytest.mark.anyio
async def test_a_list_is_all_pages_and_asks_only_for_those_that_are_read(client: AsyncClient) -> None:
    made = [(await client.files.create(b"x", filename=f"{n}", purpose="user_data")).filename for n in range(5)]
    await client.files.create(b"y", filename="other", purpose="evals")
    listed = [file.filename async for file in client.files.list(purpose="user_data", page_size=2)]
    assert sorted(listed) == sorted(made)
    oldest = [file.filename async for file in client.files.list(order="asc", page_size=4)]
    assert len(oldest) == 6
    assert [name for name in oldest if name != "other"] == listed[::-1]
    first = client.files.list(page_size=1)
    await anext(first)
    await first.aclose()
    with pytest.raises(BadRequestError):
        await anext(client.files.list(page_size=0))


@pytest.mark.anyio
async def test_uploads_that_cannot_be_are_told(client: AsyncClient, tmp_path: Path) -> None:
    with pytest.raises(BadRequestError) as raised:
        await client.files.create(b"x" * (1 << 21))
    assert (raised.value.status, raised.value.code) == (413, "body_too_large")
    with pytest.raises(BadRequestError, match="purpose"):
        await client.files.create(b"x", purpose="nothing")
    with pytest.raises(FileNotFoundError):
        await client.files.create(tmp_path / "missing")


def test_a_file_is_sent_in_pieces_and_whole_again_after_a_refusal(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20))
    attempts: list[list[bytes]] = []

    class Carrier(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            assert isinstance(request.stream, httpx.SyncByteStream)
            attempts.append(list(request.stream))
            if len(attempts) == 1:
                return httpx.Response(503, headers={"retry-after": "0"})
            return httpx.Response(200, json={"id": "file-1"})

    with Client(transport=Carrier()) as client:
        assert client.files.create(source).id == "file-1"
    assert len(attempts) == 2
    for pieces in attempts:
        assert source.read_bytes() in b"".join(pieces)
        assert max(map(len, pieces)) <= 1 << 16


def test_a_download_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    class Body(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"half"
            raise httpx.ReadError("reset")

    target = tmp_path / "target"
    target.write_text("before")
    carrier = httpx.MockTransport(lambda _: httpx.Response(200, stream=Body()))
    with Client(transport=carrier) as client, pytest.raises(ConnectionFailedError):
        client.files.download("file-1", target)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.anyio
async def test_requests_become_answers_with_their_labels(client: AsyncClient, llm: ToyLLM) -> None:
    llm.step_s = 0.01
    texts = {f"名-{n}": f"question {n}" for n in range(6)}
    requests = {name: question(text) for name, text in texts.items()} | {"wrong": question("x", temperature=9)}
    looks: list[Batch] = []
    answers = {
        answer.custom_id: answer
        async for answer in client.batches.run(
            requests.items(), metadata={"a": "b"}, poll_s=POLL_S, on_progress=looks.append
        )
    }
    wrong = answers.pop("wrong")
    assert {name: answer.read(ChatCompletion).text for name, answer in answers.items()} == {
        name: f"echo: [user] {text}" for name, text in texts.items()
    }
    with pytest.raises(BadRequestError) as raised:
        wrong.read(ChatCompletion)
    assert raised.value.param == "temperature"
    assert (looks[-1].status, looks[-1].metadata) == ("completed", {"a": "b"})
    counts = looks[-1].request_counts
    assert (counts.total, counts.completed, counts.failed) == (7, 6, 1)
    again = [answer.custom_id async for answer in client.batches.answers(looks[-1].id)]
    assert again == [*texts, "wrong"]
    with pytest.raises(UnreadableAnswerError, match="Embeddings"):
        answers["名-0"].read(Embeddings)


@pytest.mark.anyio
async def test_who_watches_sees_each_change_once_until_the_end(client: AsyncClient, llm: ToyLLM) -> None:
    llm.step_s = 0.01
    lines = b'{"custom_id":"1","method":"POST","url":"/v1/completions","body":{"prompt":"one"}}\n'
    file = await client.files.create(lines, filename="lines.jsonl")
    batch = await client.batches.create(file.id, endpoint="/v1/completions")
    seen = [(each.status, each.request_counts) async for each in client.batches.watch(batch.id, poll_s=POLL_S)]
    assert len(set(seen)) == len(seen)
    assert (seen[-1][0], seen[-1][1].completed) == ("completed", 1)
    assert await client.batches.wait(batch.id) == await client.batches.retrieve(batch.id)
    assert [each.id async for each in client.batches.list(page_size=1)] == [batch.id]
    (answer,) = [each async for each in client.batches.answers(batch.id)]
    assert answer.read(Completion).text


@pytest.mark.anyio
async def test_a_batch_without_all_its_answers_is_an_error(client: AsyncClient, llm: ToyLLM) -> None:
    twice = [("same", question("x")), ("same", question("y"))]
    with pytest.raises(BatchError, match="line 2") as raised:
        _ = [answer async for answer in client.batches.run(twice, poll_s=POLL_S)]
    assert raised.value.code == "duplicate_custom_id"
    llm.endless = True
    begun: list[Batch] = []
    run = client.batches.run([("1", question("x"))], poll_s=POLL_S, on_progress=begun.append)

    async def cancel() -> None:
        while not begun:
            await asyncio.sleep(POLL_S)
        await client.batches.cancel(begun[0].id)

    async def read() -> list[BatchAnswer]:
        return [answer async for answer in run]

    with pytest.raises(BatchError, match="is cancelled; 0 of") as raised:
        await asyncio.gather(cancel(), read())
    assert raised.value.code == "cancelled"


def test_a_refusal_in_the_midst_of_an_upload_is_told(serve: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(32 << 20)
    database = open_database(f"sqlite:///{tmp_path / 'q.db'}")
    with serve(database=database, max_files_bytes=1 << 20) as url, Client(url) as client:
        with pytest.raises(BadRequestError) as raised:
            client.files.create(source)
        assert (raised.value.status, raised.value.code) == (413, "quota_exceeded")
        assert client.files.create(b"x").bytes == 1
        assert len(list(client.files.list())) == 1
