from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError
from qwenstack.serving import ServeConfig, create_app, site
from qwenstack.serving.site import read_site

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>页面</title>")
    (folder / "favicon.svg").write_text("<svg/>")
    (folder / "assets" / "index-abc123.js").write_text("export {}")
    (folder / "assets" / "odd.xyz").write_bytes(b"\0")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "out").symlink_to(tmp_path)
    return folder


def client_of(folder: Path | None) -> httpx.AsyncClient:
    app = create_app(ToyLLM(), ServeConfig(static_dir=folder, api_keys=("sk-test-key",)))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000")


async def test_the_page_is_served_with_strict_headers_and_without_a_key(folder: Path) -> None:
    async with client_of(folder) as client:
        for path in ("/", "/index.html"):
            page = await client.get(path)
            assert page.status_code == 200
            assert "页面" in page.text
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert page.headers["cache-control"] == "no-cache"
            policy = page.headers["content-security-policy"]
            for rule in ("default-src 'none'", "script-src 'self'", "require-trusted-types-for 'script'"):
                assert rule in policy
            assert "unsafe" not in policy


async def test_hashed_files_are_kept_for_ever_and_others_are_checked(folder: Path) -> None:
    async with client_of(folder) as client:
        script = await client.get("/assets/index-abc123.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert "immutable" in script.headers["cache-control"]
        icon = await client.get("/favicon.svg")
        assert icon.headers["cache-control"] == "no-cache"
        again = await client.get("/favicon.svg", headers={"If-None-Match": icon.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        head = await client.head("/")
        assert (head.status_code, head.content) == (200, b"")
        odd = await client.get("/assets/odd.xyz")
        assert odd.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    "path",
    [
        "/link.txt",
        "/out/secret.txt",
        "/../secret.txt",
        "/assets/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/assets/%2e%2e/%2e%2e/secret.txt",
        "//secret.txt",
        "/assets/",
        "/assets",
        "/assets/index-abc123.js%00",
        "/INDEX.html",
    ],
)
async def test_sec_11_nothing_outside_the_folder_is_served(folder: Path, path: str) -> None:
    async with client_of(folder) as client:
        request = client.build_request("GET", "http://localhost:8000/")
        request.url = request.url.copy_with(raw_path=path.encode())
        response = await client.send(request)
        assert response.status_code in {401, 404}
        assert "secret" not in response.text


@pytest.mark.parametrize("folder_is", ["none", "missing", "empty"])
async def test_without_a_page_the_root_says_why_in_two_languages(tmp_path: Path, folder_is: str) -> None:
    folder = {"none": None, "missing": tmp_path / "nothing", "empty": tmp_path}[folder_is]
    async with client_of(folder) as client:
        page = await client.get("/")
        assert page.status_code == 200
        for words in ("make web", "网页还没有构建", "has not been built", "http://127.0.0.1:8000/v1", "/openapi.json"):
            assert words in page.text
        assert (await client.get("/livez")).status_code == 200


def test_a_folder_that_is_no_page_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "MAX_SITE_BYTES", 20)
    with pytest.raises(ConfigError, match="20 bytes"):
        read_site(folder)
