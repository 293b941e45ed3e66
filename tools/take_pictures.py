"""Take the README's pictures of the chat page from a server that runs: take_pictures.py [URL].

.venv-test/bin/qwenstack serve qwen2.5-coder-0.5b &
.venv-test/bin/python tools/take_pictures.py http://127.0.0.1:8000
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, ViewportSize, sync_playwright

FOLDER = Path(__file__).parents[1] / "docs/images"
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
Colours = Literal["light", "dark"]
PICTURES: tuple[tuple[str, ViewportSize, Colours, str, str], ...] = (
    ("chat-light", DESKTOP, "light", "en-GB", "Write a Python function for quicksort, with comments."),
    ("chat-dark", DESKTOP, "dark", "zh-CN", "用Python写一个快速排序函数，并写中文注释"),
    ("chat-phone", PHONE, "light", "zh-CN", "用三句话介绍一下杭州"),
)
ANSWER_TIMEOUT_MS = 120_000


def take(browser: Browser, url: str, picture: tuple[str, ViewportSize, Colours, str, str]) -> None:
    """Ask one question and keep what the page shows."""
    name, viewport, colours, locale, question = picture
    context = browser.new_context(viewport=viewport, color_scheme=colours, locale=locale, device_scale_factor=2)
    page = context.new_page()
    page.goto(url)
    page.get_by_test_id("composer").fill(question)
    page.keyboard.press("Enter")
    page.get_by_test_id("stop").wait_for(state="visible")
    page.get_by_test_id("stop").wait_for(state="hidden", timeout=ANSWER_TIMEOUT_MS)
    page.locator(".messages").evaluate("(messages) => { messages.scrollTop = 0; }")
    page.wait_for_timeout(500)
    page.screenshot(path=FOLDER / f"{name}.png")
    context.close()


def main(url: str) -> None:
    """Take all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for picture in PICTURES:
            take(browser, url, picture)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
