"""Our own clients of the administration, the one that waits and the one that is awaited, over both applications."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from toy_llm import ToyLLM

from qwenstack.client import (
    AdminClient,
    AsyncAdminClient,
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    KeyLimits,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RetryPolicy,
)
from qwenstack.client.endpoint import Group, ItemsEndpoint
from qwenstack.serving import ServeConfig, admin_config, create_admin_app, create_app
from qwenstack.storage import Database, open_database

KEY = "qsa-the-key-of-the-file-on-this-machine"
AT_ONCE = RetryPolicy(max_retries=0)
HELLO = [{"role": "user", "content": "你好"}]

Connect = Callable[..., contextlib.AbstractAsyncContextManager[AsyncAdminClient]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.fixture
async def public(llm: ToyLLM, database: Database) -> AsyncGenerator[FastAPI]:
    app = create_app(llm, ServeConfig(admin_keys=(KEY,)), database=database)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
def administration(public: FastAPI, tmp_path: Path) -> FastAPI:
    (tmp_path / "adapters" / "legal").mkdir(parents=True)
    config = ServeConfig(adapters_folder=tmp_path / "adapters")
    return create_admin_app(public, admin_config(config, host="127.0.0.1", port=8001))


class FromThreads(httpx.BaseTransport):
    """Carries the requests of a client that waits, in a thread, to an application on this loop."""

    def __init__(self, app: FastAPI) -> None:
        self._inner = httpx.ASGITransport(app)
        self._loop = asyncio.get_running_loop()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run_coroutine_threadsafe(self._ask(request), self._loop).result(60)

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


class InThreads:
    """A client that waits, with the methods of the one that is awaited."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> GroupInThreads:
        return GroupInThreads(getattr(self._client, name))


class GroupInThreads:
    """A group of its calls: each runs in a thread."""

    def __init__(self, group: Group[Any]) -> None:
        self._group = group

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._group, name)

        async def call(*args: Any, **options: Any) -> Any:
            return await anyio.to_thread.run_sync(lambda: method(*args, **options))

        async def iterate(*args: Any, **options: Any) -> AsyncGenerator[Any]:
            for item in await anyio.to_thread.run_sync(lambda: list(method(*args, **options))):
                yield item

        return iterate if isinstance(vars(type(self._group))[name], ItemsEndpoint) else call


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, administration: FastAPI) -> Connect:
    """Open a client of either kind: `async with connect(api_key="qs-…") as admin`."""

    @contextlib.asynccontextmanager
    async def open_client(**options: Any) -> AsyncGenerator[AsyncAdminClient]:
        options = {"retries": AT_ONCE} | options
        if request.param == "sync":
            with AdminClient(transport=FromThreads(administration), **options) as waiting:
                yield cast("AsyncAdminClient", InThreads(waiting))
        else:
            async with AsyncAdminClient(transport=httpx.ASGITransport(administration), **options) as awaited:
                yield awaited

    return open_client


@pytest.fixture
async def admin(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[AsyncAdminClient]:
    monkeypatch.setenv("QWENSTACK_ADMIN_KEY", KEY)
    async with connect() as admin:
        yield admin


def caller(public: FastAPI, key: str | None = None) -> AsyncClient:
    return AsyncClient(transport=httpx.ASGITransport(public), api_key=key, retries=AT_ONCE)


@pytest.mark.anyio
async def test_a_key_opens_what_it_says_until_it_is_revoked(admin: AsyncAdminClient, public: FastAPI) -> None:
    async with caller(public) as client:
        model = (await client.models.list()).data[0].id
    made = await admin.keys.create("ci", tenant="ours", scopes=["inference"], models=[model], expires_in_s=60)
    assert (made.name, made.tenant, made.scopes, made.models, made.state) == (
        "ci",
        "ours",
        ["inference"],
        [model],
        "open",
    )
    assert made.expires_at is not None
    assert 59 <= made.expires_at - made.created_at <= 60
    assert made.key not in repr(made)
    found = await admin.keys.retrieve(made.id)
    assert found.id == made.id
    assert not hasattr(found, "key")
    async with caller(public, made.key) as client, caller(public) as stranger:
        assert (await client.chat.create(HELLO)).text == "echo: [user] 你好"
        with pytest.raises(AuthenticationError):
            await stranger.chat.create(HELLO)
        assert (await admin.keys.revoke(made.id)).state == "revoked"
        with pytest.raises(AuthenticationError):
            await client.chat.create(HELLO)
    with pytest.raises(NotFoundError):
        await admin.keys.retrieve("none")
    with pytest.raises(BadRequestError) as raised:
        await admin.keys.create("ci", scopes=["everything"])
    assert raised.value.param is not None


@pytest.mark.anyio
async def test_limits_are_said_with_a_key_and_anew(admin: AsyncAdminClient, public: FastAPI) -> None:
    made = await admin.keys.create("ci", limits=KeyLimits(requests_per_minute=1, tokens_per_day=5000))
    assert made.limits == KeyLimits(requests_per_minute=1, tokens_per_day=5000)
    async with caller(public, made.key) as client:
        await client.chat.create(HELLO)
        with pytest.raises(RateLimitError) as raised:
            await client.chat.create(HELLO)
        assert raised.value.retry_after_s
        limited = await admin.keys.limit(made.id, KeyLimits(concurrent_requests=3))
        assert limited.limits == KeyLimits(concurrent_requests=3)
        assert (await admin.keys.retrieve(made.id)).limits == limited.limits
        await client.chat.create(HELLO)


@pytest.mark.anyio
async def test_all_keys_are_listed_over_pages(admin: AsyncAdminClient) -> None:
    made = [(await admin.keys.create(f"key {n}")).id for n in range(5)]
    assert sorted([key.id async for key in admin.keys.list(page_size=2)]) == sorted(made)


@pytest.mark.anyio
async def test_what_was_used_is_told_by_account(admin: AsyncAdminClient, public: FastAPI) -> None:
    made = await admin.keys.create("ci", tenant="ours")
    async with caller(public, made.key) as client:
        usage = (await client.chat.create(HELLO)).usage
    assert usage is not None
    with anyio.fail_after(20):
        while not (report := await admin.usage.retrieve(days=1)).data:
            await anyio.sleep(0.05)
    (day,) = report.data
    assert (day.account, day.tenant, day.requests) == (made.id, "ours", 1)
    assert (day.prompt_tokens, day.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)


@pytest.mark.anyio
async def test_adapters_come_and_go(admin: AsyncAdminClient, public: FastAPI) -> None:
    assert (await admin.adapters.list()).data == []
    loaded = await admin.adapters.load("legal", "legal")
    assert (await admin.adapters.list()).data == [loaded]
    async with caller(public) as client:
        assert "legal" in [model.id for model in (await client.models.list()).data]
    with pytest.raises(ConflictError):
        await admin.adapters.load("legal", "legal")
    assert (await admin.adapters.load("legal", "legal", replace=True)).name == "legal"
    assert (await admin.adapters.unload("legal")).deleted
    with pytest.raises(NotFoundError):
        await admin.adapters.unload("legal")
    with pytest.raises(BadRequestError) as raised:
        await admin.adapters.load("other", "../other")
    assert raised.value.param == "path"


@pytest.mark.anyio
async def test_the_log_is_read_over_pages_and_a_change_in_it_is_found(
    admin: AsyncAdminClient, database: Database
) -> None:
    for n in range(5):
        await admin.keys.create(f"key {n}")
    oldest = [entry async for entry in admin.audit.list(order="asc", page_size=2)]
    newest = [entry async for entry in admin.audit.list(page_size=2)]
    by_place = {entry.seq: entry for entry in newest}
    assert len(oldest) >= 5
    assert [entry.seq for entry in oldest] == list(range(1, len(oldest) + 1))
    assert [entry.seq for entry in newest] == sorted(by_place, reverse=True)
    assert all(by_place[entry.seq] == entry for entry in oldest)
    behind = [entry.seq async for entry in admin.audit.list(order="asc", after=2)]
    assert behind[: len(oldest) - 2] == [entry.seq for entry in oldest[2:]]
    checked = await admin.audit.verify()
    assert checked.is_whole
    assert (await admin.audit.verify(expect=checked.last_hash)).is_whole
    assert not (await admin.audit.verify(expect="1" * 64)).is_whole
    database.write(lambda connection: connection.execute(text("UPDATE audit SET actor = 'nobody' WHERE seq = 2")))
    broken = await admin.audit.verify()
    assert (broken.is_whole, broken.broken_at) == (False, 2)


@pytest.mark.anyio
async def test_neither_key_opens_the_other_door(connect: Connect, public: FastAPI, admin: AsyncAdminClient) -> None:
    made = await admin.keys.create("ci")
    async with connect(api_key=made.key) as intruder:
        with pytest.raises(PermissionDeniedError):
            await intruder.usage.retrieve()
    async with caller(public, KEY) as client:
        with pytest.raises(PermissionDeniedError):
            await client.chat.create(HELLO)


@pytest.mark.anyio
async def test_every_call_of_the_client_that_waits_is_one_of_the_other(connect: Connect) -> None:
    async with connect(api_key=KEY) as admin:
        client = getattr(admin, "_client", admin)
        groups = {name: group for name, group in vars(client).items() if isinstance(group, Group)}
        assert groups.keys() == {"keys", "usage", "adapters", "audit"}
        calls = {
            name: [call for call in vars(type(group)) if not call.startswith("_")] for name, group in groups.items()
        }
    assert calls == {
        "keys": ["create", "list", "retrieve", "limit", "revoke"],
        "usage": ["retrieve"],
        "adapters": ["list", "load", "unload"],
        "audit": ["list", "verify"],
    }
