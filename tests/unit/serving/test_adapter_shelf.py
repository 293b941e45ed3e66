"""Adapters over HTTP: from one folder alone, under names that are labels; what is wrong changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from toy_llm import ToyLLM

from qwenstack.core.errors import CapacityError, ConfigError, EngineRestartingError, ModelFormatError
from qwenstack.serving import ServeConfig, admin_config, create_admin_app, create_app
from qwenstack.serving.admin.adapter_shelf import find_folder
from qwenstack.serving.errors import HttpError
from qwenstack.storage import AuditLog, Database, open_database

KEY = "qsa-the-key-of-the-file-on-this-machine"
LOAD = "/admin/v1/adapters"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of adapters, and things beside it that are nobody's business."""
    root = tmp_path / "adapters"
    for name in ("legal", "legal/v2", "poems", ".hidden"):
        (root / name).mkdir(parents=True)
    (root / "legal" / "adapter_config.json").write_text("{}")
    (root / "file").write_text("")
    (tmp_path / "outside").mkdir()
    (tmp_path / "adapters-2").mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "inner").symlink_to(root / "legal")
    (root / "outer").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root / "loop")
    (root / "leaky").mkdir()
    (root / "leaky" / "adapter_config.json").symlink_to(tmp_path / "secret")
    (root / "linked").mkdir()
    (root / "linked" / "adapter_config.json").symlink_to(root / "legal" / "adapter_config.json")
    return root


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.fixture
def public(llm: ToyLLM, database: Database) -> FastAPI:
    return create_app(llm, ServeConfig(admin_keys=(KEY,)), database=database)


@pytest.fixture
async def admin(public: FastAPI, root: Path) -> AsyncIterator[httpx.AsyncClient]:
    config = admin_config(ServeConfig(adapters_folder=root), host="127.0.0.1", port=8001)
    app = create_admin_app(public, config)
    headers = {"authorization": f"Bearer {KEY}"}
    url = "http://127.0.0.1:8001"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url, headers=headers) as client:
        yield client


async def public_models(public: FastAPI) -> list[str]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="http://127.0.0.1:8000") as client:
        return [model["id"] for model in (await client.get("/v1/models")).json()["data"]]


def acts(database: Database) -> list[tuple[str, str, str, str]]:
    records = [entry.record for entry in AuditLog(database).after(0)]
    return [
        (record.actor, record.action, record.subject, record.outcome)
        for record in records
        if record.action != "request"
    ]


@pytest.mark.parametrize("path", ["legal", "legal/v2", "./legal", "legal/../poems", "inner", "linked", ".hidden"])
def test_folders_below_the_root_are_found(root: Path, path: str) -> None:
    assert find_folder(root, path) == (root / path).resolve()
    assert find_folder(root, str(root / path)) == (root / path).resolve()


OUTSIDE = [
    "",
    "missing",
    "file",
    "..",
    "../outside",
    "../adapters-2",
    "legal/../../outside",
    "./../outside",
    "legal/../../adapters/../outside",
    "//etc",
    "/",
    "/etc",
    "/etc/passwd",
    "/proc/self",
    "/proc/self/cwd",
    "/proc/1/root",
    "/dev",
    "/tmp",
    "~",
    "~root",
    "$HOME",
    "outer",
    "outer/.",
    "inner/../../outside",
    "loop",
    "loop/x",
    "leaky",
    "legal/adapter_config.json",
    "legal\0",
    "legal\0/../../outside",
    "a" * 2000,
    "../" * 300,
    "legal/" + "x/../" * 500,
    "%2e%2e/outside",
    "..%2foutside",
    "..\\outside",
    "....//outside",
    "..;/outside",
    "file:///etc",
    "\ud800",
    "․․/outside",
    "../outside\n",
    " ../outside",
    "C:\\",
    "\\\\server\\share",
]


@pytest.mark.parametrize("path", OUTSIDE, ids=range(len(OUTSIDE)))
def test_sec_11_what_lies_elsewhere_is_answered_as_what_is_not_there(root: Path, path: str) -> None:
    with pytest.raises(HttpError) as refused:
        find_folder(root, path)
    assert (refused.value.status, refused.value.param) == (400, "path")
    assert "There is no folder" in str(refused.value)


def test_sec_11_without_a_folder_nothing_is_loaded() -> None:
    with pytest.raises(HttpError, match=r"adapters\.folder"):
        find_folder(None, "legal")
    with pytest.raises(ConfigError, match=r"adapters\.folder"):
        ServeConfig(adapters_folder=Path("/nowhere"))


@pytest.mark.anyio
async def test_what_is_loaded_is_served_at_once_and_in_the_log(
    admin: httpx.AsyncClient, public: FastAPI, llm: ToyLLM, root: Path, database: Database
) -> None:
    loaded = (await admin.post(LOAD, json={"name": "legal", "path": "legal/v2"})).json()
    assert (loaded["name"], loaded["rank"], loaded["num_bytes"]) == ("legal", 2, 10)
    assert llm.adapter_paths == [root / "legal" / "v2"]
    assert await public_models(public) == ["toy/echo", "legal"]
    assert [adapter["name"] for adapter in (await admin.get(LOAD)).json()["data"]] == ["legal"]
    assert [model["id"] for model in (await admin.get("/admin/v1/models")).json()["data"]] == ["toy/echo", "legal"]
    assert (await admin.delete(f"{LOAD}/legal")).json()["deleted"] is True
    assert await public_models(public) == ["toy/echo"]
    assert (await admin.delete(f"{LOAD}/legal")).status_code == 404
    done = [("adapter.load", "begun"), ("adapter.load", "ok"), ("adapter.unload", "begun"), ("adapter.unload", "ok")]
    assert acts(database) == [("local-admin", action, "legal", outcome) for action, outcome in done]


@pytest.mark.anyio
async def test_requests_name_an_adapter_alone_or_behind_its_model(llm: ToyLLM, public: FastAPI) -> None:
    llm.adapters = ("legal",)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="http://127.0.0.1:8000") as client:
        for model, expected in (("legal", "legal"), ("toy/echo:legal", "legal"), ("toy/echo", None)):
            body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            assert llm.options[-1].adapter == expected
        for model in ("toy/echo:poems", "toy/echo:", "other:legal", ":legal"):
            assert (await client.post("/v1/chat/completions", json=body | {"model": model})).status_code == 404


@pytest.mark.anyio
async def test_vllm_s_addresses_do_the_same(admin: httpx.AsyncClient, llm: ToyLLM) -> None:
    answer = await admin.post("/v1/load_lora_adapter", json={"lora_name": "legal", "lora_path": "legal"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'legal' added successfully.")
    again = {"lora_name": "legal", "lora_path": "poems"}
    assert (await admin.post("/v1/load_lora_adapter", json=again)).status_code == 409
    assert (await admin.post("/v1/load_lora_adapter", json=again | {"load_inplace": True})).status_code == 200
    answer = await admin.post("/v1/unload_lora_adapter", json={"lora_name": "legal", "lora_int_id": 1})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'legal' removed successfully.")
    assert llm.adapters == ()
    assert (await admin.post("/v1/unload_lora_adapter", json={"lora_name": "legal"})).status_code == 404


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("address", "body", "status", "param"),
    [
        ("/v1/load_lora_adapter", {"lora_name": "", "lora_path": "legal"}, 400, "lora_name"),
        ("/v1/load_lora_adapter", {"lora_name": "default", "lora_path": "legal"}, 409, "lora_name"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "../x"}, 400, "lora_path"),
        ("/v1/unload_lora_adapter", {"lora_name": "x"}, 404, "lora_name"),
    ],
)
async def test_what_vllm_s_addresses_refuse_is_described_as_it_comes(
    admin: httpx.AsyncClient, address: str, body: dict[str, str], status: int, param: str
) -> None:
    answer = await admin.post(address, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    described = (await admin.get("/openapi.json")).json()["paths"][address]["post"]["responses"]
    assert described["200"]["content"] == {"text/plain": {"schema": {"type": "string"}}}
    kind = answer.headers["content-type"]
    assert [list(each["content"]) for code, each in described.items() if code != "200"] == [[kind]] * (
        len(described) - 1
    )


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["", ".legal", "-x", "a b", "a/b", "../a", "a:b", "名", "a" * 65, "legal\n"])
async def test_sec_11_names_are_labels(admin: httpx.AsyncClient, llm: ToyLLM, name: str) -> None:
    answer = await admin.post(LOAD, json={"name": name, "path": "legal"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")
    assert llm.adapter_paths == []


@pytest.mark.anyio
async def test_an_adapter_cannot_take_the_name_of_the_model_or_of_another(
    admin: httpx.AsyncClient, llm: ToyLLM
) -> None:
    llm.adapters = ("legal",)
    for name in ("default", "legal"):
        answer = await admin.post(LOAD, json={"name": name, "path": "poems"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "name_taken")
    assert (await admin.post(LOAD, json={"name": "legal", "path": "poems", "replace": True})).status_code == 200
    with pytest.raises(ConfigError, match="'legal'"):
        create_app(llm, ServeConfig(served_model_name="legal"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelFormatError("The adapter cannot be used: it has no weights."), 400, "invalid_adapter"),
        (CapacityError("16 adapters are loaded."), 409, "no_room_for_adapters"),
        (EngineRestartingError("The engine is being started again."), 503, "engine_restarting"),
    ],
)
async def test_what_the_engine_refuses_changes_nothing_and_is_in_the_log(
    admin: httpx.AsyncClient, llm: ToyLLM, database: Database, error: Exception, status: int, code: str
) -> None:
    llm.adapters, llm.adapter_error = ("legal",), error
    answer = await admin.post(LOAD, json={"name": "poems", "path": "poems"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert llm.adapters == ("legal",)
    assert [(action, outcome) for _, action, _, outcome in acts(database)] == [
        ("adapter.load", "begun"),
        ("adapter.load", "refused"),
    ]


@pytest.mark.anyio
async def test_what_cannot_be_written_down_is_not_done(
    admin: httpx.AsyncClient, llm: ToyLLM, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.write(lambda connection: connection.exec_driver_sql("DROP TABLE audit"))
    llm.adapters = ("poems",)
    assert (await admin.post(LOAD, json={"name": "legal", "path": "legal"})).status_code == 503
    assert (await admin.delete(f"{LOAD}/poems")).status_code == 503
    assert llm.adapters == ("poems",)
