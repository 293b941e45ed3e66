"""Imitations of the hubs on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """A server that speaks Hugging Face's and ModelScope's HTTP, and misbehaves as told."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of what was asked, headers in lower case."""
    stated_sha256: str | None = None
    """A hash to state instead of the true one."""
    cut_after: int | None = None
    """The next file ends after so many bytes; once."""
    failures: list[int] = field(default_factory=list)
    """Statuses to answer with first."""
    redirect_to: str | None = None
    """Files are at this other address."""
    knows_ranges: bool = True
    slowness_s: float = 0.0
    """For each piece of a file."""
    url: str = ""

    def asked(self, part: str) -> list[dict[str, str]]:
        return [headers for path, headers in self.requests if part in path]

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body for a path."""
        parts = urlsplit(path)
        words = [unquote(word) for word in parts.path.strip("/").split("/")]
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if self.failures:
            return self.failures.pop(0), {}, b"busy"
        if words[:3] == ["api", "v1", "models"]:
            return self._modelscope("/".join(words[3:5]), words[5:], query)
        if words[:2] == ["api", "models"]:
            return self._huggingface("/".join(words[2:4]), words[4:])
        if words[2:3] == ["resolve"] and self.redirect_to:
            return 302, {"Location": self.redirect_to + path}, b""
        repo = self.repos.get("/".join(words[:2]), {})
        content = repo.get("/".join(words[4:]))
        return (404, {}, b"") if content is None else (200, {}, content)

    def _huggingface(self, repo: str, words: list[str]) -> tuple[int, dict[str, str], bytes]:
        if repo not in self.repos:
            return 401, {}, b"{}"
        if words[0] == "revision":
            return 200, {}, json.dumps({"sha": COMMIT}).encode()
        listing: list[dict[str, object]] = [{"type": "directory", "path": "sub", "oid": COMMIT, "size": 0}]
        for name, content in self.repos[repo].items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git}
            if not name.endswith(".json"):
                entry["lfs"] = {"oid": self._sha256(content), "size": len(content)}
            listing.append(entry)
        return 200, {}, json.dumps(listing).encode()

    def _modelscope(self, repo: str, words: list[str], query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if repo not in self.repos:
            return 404, {}, b'{"Code": 10010205001}'
        if words == ["repo", "files"]:
            files = [
                {"Type": "blob", "Path": name, "Size": len(raw), "Sha256": self._sha256(raw), "Revision": COMMIT}
                for name, raw in self.repos[repo].items()
            ]
            return 200, {}, json.dumps({"Code": 200, "Data": {"Files": files}}).encode()
        assert query["Revision"] == COMMIT
        return 200, {}, self.repos[repo][query["FilePath"]]

    def _sha256(self, content: bytes) -> str:
        return self.stated_sha256 or hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        hub = self.hub
        hub.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = hub.answer(self.path)
        if status == 200 and "range" in self.headers and hub.knows_ranges:
            start = int(self.headers["range"].removeprefix("bytes=").removesuffix("-"))
            headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            status, body = 206, body[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "/api/" not in self.path or "FilePath" in self.path:
            self._send_file(body)
        else:
            self.wfile.write(body)

    def _send_file(self, body: bytes) -> None:
        hub = self.hub
        if hub.cut_after is not None:
            body, hub.cut_after = body[: hub.cut_after], None
            self.close_connection = True
        try:
            for start in range(0, len(body), 10_000):
                time.sleep(hub.slowness_s)
                self.wfile.write(body[start : start + 10_000])
        except ConnectionError:
            self.close_connection = True

    def log_request(self, *args: object) -> None:
        pass


@pytest.fixture
def start_hub() -> Iterator:
    """Start imitations of hubs; they end with the test."""
    servers = []

    def start(**settings) -> FakeHub:
        hub = FakeHub(**settings)
        handler = type("Handler", (_Handler,), {"hub": hub})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return hub

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Listener:
    """Keeps what a pull tells."""

    said: list[str] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def bytes(self, done: int, total: int) -> None:
        self.counts.append((done, total))


@pytest.fixture
def listener() -> Listener:
    return Listener()
