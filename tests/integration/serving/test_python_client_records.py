"""Our own client's calls for what a server keeps, over the application itself with a database."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.client import AsyncClient, BadRequestError, NotFoundError, RetryPolicy
from qwenstack.client.responses import Response
from qwenstack.serving import ServeConfig, create_app
from qwenstack.storage import open_database

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "serving"))

from toy_embedder import ToyEmbedder


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(llm: ToyLLM, tmp_path: Path) -> AsyncGenerator[AsyncClient]:
    app = create_app(
        llm, ServeConfig(), database=open_database(f"sqlite:///{tmp_path / 'q.db'}"), embedder=ToyEmbedder()
    )
    no_retries = RetryPolicy(max_retries=0)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=httpx.ASGITransport(app), retries=no_retries) as client,
    ):
        yield client


@pytest.mark.anyio
async def test_a_conversation_goes_on_from_a_response_that_was_kept(client: AsyncClient, llm: ToyLLM) -> None:
    first = await client.responses.create("one")
    assert (first.text, first.status) == ("echo: [user] one", "completed")
    second = await client.responses.create("two", previous_response_id=first.id)
    assert b"one" in bytes(llm.prompts[-1])
    assert await client.responses.retrieve(second.id) == second
    assert (await client.responses.delete(first.id)).deleted
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(first.id)


@pytest.mark.anyio
async def test_a_streams_response_is_the_one_that_was_kept(client: AsyncClient) -> None:
    async with client.responses.stream("one") as stream:
        texts = [text async for text in stream.texts()]
        final = await stream.final()
    assert "".join(texts) == final.text == "echo: [user] one"
    assert len(texts) > 1
    assert await client.responses.retrieve(final.id) == final


@pytest.mark.anyio
async def test_who_waits_hears_of_each_look_and_gets_the_end(client: AsyncClient, llm: ToyLLM) -> None:
    llm.step_s = 0.02
    begun = await client.responses.create("one", background=True)
    assert not begun.is_over
    looks: list[Response] = []
    done = await client.responses.wait(begun.id, poll_s=0.05, on_progress=looks.append)
    assert (done.id, done.text) == (begun.id, "echo: [user] one")
    assert len(looks) > 1
    assert not looks[0].is_over
    llm.endless = True
    begun = await client.responses.create("two", background=True)
    assert (await client.responses.cancel(begun.id)).status == "cancelled"
    assert (await client.responses.wait(begun.id)).is_over


@pytest.mark.anyio
async def test_failures_of_responses_have_types(client: AsyncClient, llm: ToyLLM) -> None:
    with pytest.raises(BadRequestError) as raised:
        await client.responses.create("x", temperature=9)
    assert raised.value.param == "temperature"
    llm.fail_after = 2
    async with client.responses.stream("x", store=False) as stream:
        failed = await stream.final()
    assert failed.status == "failed"
    assert failed.error is not None
    assert "secret" not in failed.error.message


@pytest.mark.anyio
async def test_texts_become_vectors(client: AsyncClient) -> None:
    one = await client.embeddings.create("ab")
    many = await client.embeddings.create(["ab", "cd"], input_type="query")
    assert len(many.vectors) == 2
    assert len(one.vectors[0]) == len(many.vectors[0]) > 0
    assert many.vectors[0] != many.vectors[1]
    assert one.usage is not None
    assert one.usage.prompt_tokens > 0
