"""Files: the official client against the application in one process, and what a stranger may not do."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.files import MOST_UPLOADS
from qwenstack.storage import ApiKeys, Database, open_database

LINES = '{"a": "你好"}\n'.encode() * 100


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.fixture
def app(llm: ToyLLM, database: Database) -> FastAPI:
    return create_app(
        llm,
        ServeConfig(max_upload_bytes=10_000, max_files_bytes=25_000),
        database=database,
    )


def official(app: FastAPI, key: str) -> AsyncOpenAI:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
    return AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=http, max_retries=0)


@pytest.fixture
async def files(app: FastAPI) -> AsyncIterator[Any]:
    async with official(app, "any") as client:
        yield client.files


def contents(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "q-files").iterdir())


@pytest.mark.anyio
async def test_a_file_comes_back_as_it_went(files: Any, tmp_path: Path) -> None:
    made = await files.create(file=("../../名 1.jsonl", LINES), purpose="batch")
    assert (made.filename, made.bytes, made.purpose) == ("../../名 1.jsonl", len(LINES), "batch")
    assert made.expires_at - made.created_at == 30 * 86_400
    assert await files.retrieve(made.id) == made
    content = await files.content(made.id)
    assert content.read() == LINES
    headers = content.response.headers
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''..%2F..%2F%E5%90%8D%201.jsonl"
    assert (headers["content-type"], headers["x-content-type-options"]) == ("application/octet-stream", "nosniff")
    (path,) = contents(tmp_path)
    assert (path.name, path.read_bytes()) == (made.id, LINES)
    assert (await files.delete(made.id)).deleted
    assert contents(tmp_path) == []
    for wish in (files.retrieve(made.id), files.content(made.id), files.delete(made.id)):
        with pytest.raises(openai.NotFoundError):
            await wish


@pytest.mark.anyio
async def test_files_are_listed_in_pages(files: Any) -> None:
    made = [await files.create(file=(f"{n}", b"x"), purpose="batch" if n % 2 else "user_data") for n in range(5)]
    newest = [file.id async for file in files.list(limit=2)]
    oldest = [file.id async for file in files.list(limit=2, order="asc")]
    assert sorted(newest) == sorted(file.id for file in made)
    assert oldest == newest[::-1]
    assert {file.id async for file in files.list(purpose="batch")} == {made[1].id, made[3].id}
    with pytest.raises(openai.NotFoundError):
        await files.list(after="file-" + "0" * 32)
    with pytest.raises(openai.BadRequestError, match="`limit` is '0'"):
        await files.list(limit=0)


@pytest.mark.anyio
async def test_a_file_can_have_an_end_of_its_own(files: Any) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    made = await files.create(file=("f", b"x"), purpose="user_data", expires_after=expiry)
    assert made.expires_at - made.created_at == 3600
    with pytest.raises(openai.BadRequestError, match="between 3600 and 2592000"):
        await files.create(file=("f", b"x"), purpose="batch", expires_after=expiry | {"seconds": 3599})


@pytest.mark.anyio
async def test_sec_09_files_are_bounded_one_by_one_and_together(files: Any, tmp_path: Path) -> None:
    with pytest.raises(openai.APIStatusError, match="more than 10000 bytes") as error:
        await files.create(file=("f", b"x" * 10_001), purpose="batch")
    assert error.value.status_code == 413
    made = [await files.create(file=("f", b"x" * 10_000), purpose="batch") for _ in range(2)]
    with pytest.raises(openai.APIStatusError, match="more bytes than you may keep"):
        await files.create(file=("f", b"x" * 5_001), purpose="batch")
    await files.create(file=("f", b"x" * 5_000), purpose="batch")
    await files.delete(made[0].id)
    await files.create(file=("f", b"x" * 10_000), purpose="batch")
    assert sum(path.stat().st_size for path in contents(tmp_path)) == 25_000


@pytest.mark.anyio
async def test_sec_09_uploads_that_fit_alone_do_not_pass_the_quota_together(files: Any, tmp_path: Path) -> None:
    wishes = [files.create(file=("f", b"x" * 9_000), purpose="batch") for _ in range(MOST_UPLOADS)]
    results = await asyncio.gather(*wishes, return_exceptions=True)
    assert sum(isinstance(result, openai.APIStatusError) for result in results) == 2
    assert sum(path.stat().st_size for path in contents(tmp_path)) == 18_000


@pytest.mark.anyio
async def test_sec_09_a_tenant_has_so_many_uploads_at_once(app: FastAPI, tmp_path: Path) -> None:
    is_open = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"--x\r\n"
        await is_open.wait()

    headers = {"content-type": "multipart/form-data; boundary=x"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        slow = [
            asyncio.create_task(client.post("/v1/files", headers=headers, content=slowly()))
            for _ in range(MOST_UPLOADS)
        ]
        async with asyncio.timeout(20):
            while not (tmp_path / "q-files").exists() or len(contents(tmp_path)) < MOST_UPLOADS:
                await asyncio.sleep(0.01)
        refused = await client.post("/v1/files", headers=headers, content=b"--x\r\n")
        assert (refused.status_code, "under way" in refused.text) == (503, True)
        is_open.set()
        assert {(await task).status_code for task in slow} == {400}
    assert contents(tmp_path) == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("data", "upload", "param"),
    [
        ({}, {"file": ("f", b"x")}, "purpose"),
        ({"purpose": "batch"}, {"other": ("f", b"x")}, None),
        ({"purpose": "secret"}, {"file": ("f", b"x")}, "purpose"),
        ({"purpose": "batch", "x": "y"}, {"file": ("f", b"x")}, "x"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, {"file": ("f", b"x")}, "expires_after[anchor]"),
    ],
)
async def test_wrong_forms_are_refused_and_leave_nothing(
    app: FastAPI, tmp_path: Path, data: dict[str, str], upload: Any, param: str | None
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.post("/v1/files", data=data, files=upload)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert (await client.post("/v1/files", json={})).status_code == 415
    assert contents(tmp_path) == []


@pytest.mark.anyio
async def test_sec_11_names_and_ids_of_clients_are_never_paths(files: Any, app: FastAPI, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    made = await files.create(file=("../secret", b"x"), purpose="batch")
    assert [path.name for path in contents(tmp_path)] == [made.id]
    folder = tmp_path / "q-files"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / made.id).stat().st_mode) == 0o600
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for name in ("..%2Fsecret", "%2e%2e%2fsecret", "..", made.id + "/../secret", "file-" + "0" * 32):
            for path in (f"/v1/files/{name}", f"/v1/files/{name}/content"):
                assert (await client.get(path)).status_code in {404, 405}
                assert (await client.delete(path)).status_code in {404, 405}
        # Somebody who can write to the folder puts a link in a content's place.
        (folder / made.id).unlink()
        (folder / made.id).symlink_to(tmp_path / "secret")
        answer = await client.get(f"/v1/files/{made.id}/content")
        assert answer.status_code >= 400
        assert answer.text != "s"
    assert (tmp_path / "secret").read_text() == "s"


@pytest.mark.anyio
async def test_sec_17_a_tenant_finds_its_own_files_alone(llm: ToyLLM, database: Database) -> None:
    keys = ApiKeys(database)
    texts = [keys.create(name="n", tenant=tenant, actor="me").text for tenant in ("ours", "ours", "theirs")]
    app = create_app(llm, ServeConfig(), database=database)
    own, colleague, other = (official(app, text) for text in texts)
    made = await own.files.create(file=("f", b"x"), purpose="user_data")
    assert (await colleague.files.content(made.id)).read() == b"x"
    for wish in (other.files.retrieve(made.id), other.files.content(made.id), other.files.delete(made.id)):
        with pytest.raises(openai.NotFoundError):
            await wish
    assert [file async for file in other.files.list()] == []
    with pytest.raises(openai.NotFoundError):
        await other.files.list(after=made.id)


@pytest.mark.anyio
async def test_sec_20_a_page_of_another_site_uploads_nothing(app: FastAPI, tmp_path: Path) -> None:
    upload: Any = {"file": ("f", b"x")}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
        for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            answer = await client.post("/v1/files", data={"purpose": "batch"}, files=upload, headers=headers)
            assert answer.status_code == 403
    assert not (tmp_path / "q-files").exists() or contents(tmp_path) == []


@pytest.mark.anyio
async def test_without_a_database_no_files_are_kept_and_that_is_told(llm: ToyLLM) -> None:
    async with official(create_app(llm, ServeConfig()), "any") as client:
        with pytest.raises(openai.BadRequestError, match="keeps no files"):
            await client.files.create(file=("f", b"x"), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="keeps no files"):
            await client.files.list()
