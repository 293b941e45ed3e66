"""What the browser tests share: a real server with real weights, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

MODEL = "smollm2-135m"
READY_TIMEOUT_S = 180
STATIC_DIR = Path(__file__).parents[2] / "src/qwenstack/serving/static"
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def skip_unless_ci(reason: str) -> NoReturn:
    """Skip where a part is missing; in CI that is a failure, or nobody would notice."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urlopen(f"{url}/readyz", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"No answer at {url}/readyz. The server said:\n{log.read_text(errors='replace')[-4000:]}")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a running `qwenstack serve`; QWENSTACK_E2E_URL names one that runs already."""
    running = os.environ.get("QWENSTACK_E2E_URL")
    if running:
        yield running.rstrip("/")
        return
    if not (STATIC_DIR / "index.html").is_file():
        skip_unless_ci("The web page is not built. Run `make web`.")
    port = free_port()
    folder = tmp_path_factory.mktemp("server")
    log = folder / "server.log"
    command = [sys.executable, "-m", "qwenstack", "serve", MODEL, "--port", str(port)]
    command += ["--set", f"storage.url=sqlite:///{folder / 'q.db'}"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="session")
def browser() -> Generator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        skip_unless_ci("No Chromium. Install Debian's package `chromium`.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Browser) -> Generator[BrowserContext]:
    context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 800})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Generator[Page]:
    """A page that fails its test by any error or warning in the console: a violated policy shows there too."""
    page = context.new_page()
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # A refused request is the server's business; the browser reports it in these words.
        if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []
