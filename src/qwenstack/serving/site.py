"""The web page: files read once at the start, so that no request ever opens one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastapi import Request, Response
from fastapi.routing import APIRouter

from qwenstack.core.errors import ConfigError
from qwenstack.serving.access import PublicRoute

PAGE_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types svelte-trusted-html"
)
"""What the page may load and do; the one trusted-types policy is Svelte's own for its compiled templates."""

MAX_SITE_BYTES = 64 * 1024 * 1024
_MEDIA_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
_MISSING_PAGE = """<!doctype html>
<html lang="zh-CN">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>qwenstack</title></head>
<body>
<h1>qwenstack</h1>
<p>API 已经在运行，但网页还没有构建。请运行 <code>make web</code>，然后重新启动。</p>
<p>API 地址：<code>{api_url}</code>，接口说明：<a href="/openapi.json">/openapi.json</a>。</p>
<p lang="en">The API is running, but the web page has not been built. Run <code>make web</code> and start again.</p>
<p lang="en">API address: <code>{api_url}</code>, its description: <a href="/openapi.json">/openapi.json</a>.</p>
</body>
</html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFile:
    """One file of the page, ready to be sent."""

    content: bytes
    media_type: str
    cache_control: str
    etag: str


def read_site(folder: Path | None) -> dict[str, SiteFile]:
    """Read the built page; empty where there is none.

    Links are left out, so that nothing outside the folder is ever served.

    Raises:
        ConfigError: the folder holds more than a page.
    """
    if folder is None or not (folder / "index.html").is_file():
        return {}
    root = folder.resolve()
    files: dict[str, SiteFile] = {}
    size = 0
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(root):
            continue
        size += path.stat().st_size
        if size > MAX_SITE_BYTES:
            raise ConfigError(
                f"`static_dir` {str(folder)!r} holds more than {MAX_SITE_BYTES} bytes; is it the built page?"
            )
        name = PurePosixPath(path.relative_to(root)).as_posix()
        if not any(sign in name for sign in "{}"):  # the router's own signs
            files[name] = _site_file(name, path.read_bytes())
    return files


def site_routes(files: Mapping[str, SiteFile], *, api_url: str) -> APIRouter:
    """Make one public route for each file, and `/`."""
    router = APIRouter(route_class=PublicRoute)
    missing = _site_file("index.html", _MISSING_PAGE.format(api_url=api_url).encode())
    _add_file(router, "/", files.get("index.html", missing))
    for name, file in files.items():
        _add_file(router, f"/{name}", file)
    return router


def _add_file(router: APIRouter, path: str, file: SiteFile) -> None:
    async def send_file(request: Request) -> Response:
        headers = {
            "ETag": file.etag,
            "Cache-Control": file.cache_control,
            "Content-Security-Policy": PAGE_CSP,
            "Content-Type": file.media_type,
        }
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers)

    router.add_api_route(path, send_file, methods=["GET", "HEAD"], include_in_schema=False)


def _site_file(name: str, content: bytes) -> SiteFile:
    # The build puts a hash of the content into the names under `assets/`.
    is_hashed = name.startswith("assets/")
    return SiteFile(
        content=content,
        media_type=_MEDIA_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream"),
        cache_control="public, max-age=31536000, immutable" if is_hashed else "no-cache",
        etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )
